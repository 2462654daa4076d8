"""The binary: exit codes and what it prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from finecut.dataprep import main
from finecut.dataprep.testing import write_tiny_tokenizer

JOB = """
name: "chats"
stages {
  name: "prepare"
  data_prep { sources { paths: "chats.jsonl" } tokenization { tokenizer: "tokenizer" } packing { block_size: 256 } }
}
"""
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = write_tiny_tokenizer(tmp_path / "tokenizer")
    (tokenizer / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "job.textproto").write_text(JOB)
    (tmp_path / "chats.jsonl").write_text(json.dumps(CHAT) + "\n")
    return tmp_path


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "BUILD_WORKING_DIRECTORY": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, main.__file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_prepares_and_says_where(folder: Path) -> None:
    done = run(folder, "--config=job.textproto", "--storage_root=out")
    assert done.returncode == 0, done.stderr
    assert "train: 1 documents" in done.stdout
    assert f"prepared data: {folder}/out/chats/stages/prepare/artifact/manifest.json" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config=absent.textproto"], "absent.textproto"),
        (["--config=job.textproto", "--stage=sft"], "'sft' is not a data_prep stage"),
        (["--config=job.textproto", "--nonsense"], "Unknown command line flag 'nonsense'"),
        ([], "--config must have a value"),
        (["--config=job.textproto", "--set=stages.prepare.data_prep.packing.block_size=3"], "block_size"),
    ],
)
def test_invalid_input_exits_with_2_and_no_traceback(folder: Path, arguments: list[str], reason: str) -> None:
    done = run(folder, *arguments)
    assert done.returncode == 2
    assert reason in done.stderr and "Traceback" not in done.stderr


def test_a_corrupt_line_is_named(folder: Path) -> None:
    with (folder / "chats.jsonl").open("a") as file:
        file.write("{oops\n")
    done = run(folder, "--config=job.textproto")
    assert done.returncode == 2
    assert f"{folder}/chats.jsonl:2: not JSON" in done.stderr and "Traceback" not in done.stderr
