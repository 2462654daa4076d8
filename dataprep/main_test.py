"""The binary: exit codes and what it prints."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from absl.testing import flagsaver

from finecut.dataprep import main
from finecut.dataprep.testing import write_tiny_tokenizer
from finecut.proto.run import artifacts

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


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Calls the binary's main in this process with these arguments and returns its exit code."""

    def call(*arguments: str) -> int:
        with flagsaver.flagsaver():
            try:
                return main.main(main.parse_flags(["dataprep", *arguments]))
            except SystemExit as stop:
                return int(stop.code or 0)

    monkeypatch.setenv("BUILD_WORKING_DIRECTORY", str(folder))
    return call


def test_the_program_prepares_and_says_where(folder: Path) -> None:
    environment = {**os.environ, "BUILD_WORKING_DIRECTORY": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, main.__file__, "--config=job.textproto", "--storage_root=out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "train: 1 documents" in done.stdout
    artifact = f"{folder}/out/chats/stages/prepare/artifact"
    assert f"prepared data: {artifact}/manifest.json\nreport: {artifact}/report.html\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--config=absent.textproto"], "absent.textproto"),
        (["--config=job.textproto", "--stage=sft"], "'sft' is not a data_prep stage"),
        (["bake", "--config=job.textproto"], "'bake' is not a verb; use one of: prepare, lint"),
        (["lint", "more", "--config=job.textproto"], "'more' is not a flag"),
        (
            ["lint", "--config=job.textproto"],
            "holds no finished artifact: manifest.json is missing; run its stage first",
        ),
        (["--config=job.textproto", "--nonsense"], "Unknown command line flag 'nonsense'"),
        ([], "--config: give a job file with it, or a manifest of data alone with --manifest"),
        (["--config=job.textproto", "--manifest=data.yaml"], "--config: give a job file with it, or a manifest"),
        (["--config=job.textproto", "--set=stages.prepare.data_prep.packing.block_size=3"], "block_size"),
    ],
)
def test_invalid_input_exits_with_2_and_a_reason(
    run: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: list[str], reason: str
) -> None:
    assert run(*arguments) == 2
    assert reason in capsys.readouterr().err


MANIFEST = """
name: chats
data_prep:
  sources: [{paths: [chats.jsonl]}]
  tokenization: {tokenizer: tokenizer}
  packing: {block_size: 256}
"""


def test_a_manifest_of_data_alone_prepares(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data.yaml").write_text(MANIFEST)
    assert run("--manifest=data.yaml", "--storage_root=out") == 0
    assert "train: 1 documents" in capsys.readouterr().out
    assert run("lint", "--manifest=data.yaml", "--storage_root=out") == 0
    assert run("--config=job.textproto", "--storage_root=out2") == 0
    alone, staged = (artifacts.read(folder / root / "chats/stages/prepare/artifact") for root in ("out", "out2"))
    assert alone.data == staged.data
    assert alone.fingerprints == staged.fingerprints


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("block_size: 256", "block_size: 3", "data_prep.packing.block_size: "),
        ("packing:", "pakcing:", "data_prep.pakcing: DataPrep has no field pakcing; did you mean packing?"),
        ("name: chats", "", "name: is required"),
        ("data_prep:", "storage:", "data_prep: is required"),
    ],
)
def test_a_wrong_manifest_is_refused_with_its_own_paths(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str], old: str, new: str, reason: str
) -> None:
    (folder / "data.yaml").write_text(MANIFEST.replace(old, new))
    assert run("--manifest=data.yaml") == 2
    errors = capsys.readouterr().err
    assert reason in errors and "stages[" not in errors


def test_a_dry_run_keeps_its_report_alone(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "data.yaml").write_text(MANIFEST)
    with (folder / "chats.jsonl").open("a") as file:
        file.write((json.dumps(CHAT) + "\n") * 999)
    assert run("--manifest=data.yaml", "--dry_run") == 0
    shown = capsys.readouterr().out
    assert "chats.jsonl: 256 records looked at, 0 bad" in shown
    assert "train: 256 documents" in shown
    written = [str(path.relative_to(folder)) for path in (folder / "finecut-runs").rglob("*") if path.is_file()]
    assert written == ["finecut-runs/chats/stages/prepare/dry_run.html"]
    assert (folder / written[0]).read_text().startswith("<!doctype html>")


def test_a_dry_run_names_what_is_wrong(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "chats.jsonl").write_text("{torn\n")
    assert run("--config=job.textproto", "--dry_run") == 2
    assert f"{folder}/chats.jsonl:1: not JSON" in capsys.readouterr().err
    assert not list((folder / "finecut-runs").rglob("*.html"))


def test_a_corrupt_line_is_named(folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "chats.jsonl").open("a") as file:
        file.write("{oops\n")
    assert run("--config=job.textproto") == 2
    assert f"{folder}/chats.jsonl:2: not JSON" in capsys.readouterr().err


def test_lint_looks_at_a_finished_artifact(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("prepare", "--config=job.textproto") == 0
    capsys.readouterr()
    assert run("lint", "--config=job.textproto") == 0
    shown = capsys.readouterr().out
    assert "train: 1 documents in 1 blocks" in shown
    assert "end of turn                 ok" in shown


def test_lint_exits_with_2_where_it_finds_something(
    folder: Path, run: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--config=job.textproto") == 0
    artifact = folder / "finecut-runs/chats/stages/prepare/artifact"
    manifest = artifacts.read(artifact)
    manifest.data.splits[0].trained_token_count += 1
    artifacts.write(artifact, manifest)
    assert run("lint", "--config=job.textproto") == 2
    output, errors = capsys.readouterr()
    assert "manifest                    1 found" in output
    assert "must not be trained on: 1 findings (manifest 1)\n  train: the manifest says trained_token_count" in errors
