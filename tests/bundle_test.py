"""The bundle runs elsewhere, with another interpreter than Bazel's."""

import os
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto.run import artifacts
from finecut.trainer.recipes.testing import tiny_job, write_tiny_inputs

BUNDLE = Path(__file__).parents[1] / "tools" / "bundle" / "bundle.tar.gz"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    with tarfile.open(BUNDLE) as archive:
        archive.extractall(folder, filter="data")
    return folder


def run(unpacked: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a module of the bundle with the interpreter that the environment was made from."""
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    assert sys.prefix != sys.base_prefix, "the test must run in the environment, so that its base is another one"
    packages = sysconfig.get_path("purelib")
    environment = {"PATH": os.environ["PATH"], "HOME": str(unpacked), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = f"{unpacked}:{packages}"
    command = [str(interpreter), "-m", *arguments]
    return subprocess.run(command, env=environment, cwd=unpacked, capture_output=True, text=True)


def test_holds_sources_and_generated_protos_but_no_tests(unpacked: Path) -> None:
    assert (unpacked / "finecut/trainer/main.py").is_file()
    assert (unpacked / "finecut/proto/job_pb2.py").is_file()
    assert (unpacked / "finecut/dataprep/report/report.html.jinja").is_file()
    assert not list(unpacked.rglob("*_test.py"))


def test_trainer_trains(unpacked: Path) -> None:
    write_tiny_inputs(unpacked)
    job = tiny_job(unpacked, "max_steps: 2 batch { global_blocks: 2 }", "lora { rank: 2 }")
    (unpacked / "job.textproto").write_text(text_format.MessageToString(job))
    answer = run(unpacked, "finecut.trainer.main", "--config=job.textproto", "--stage=sft")
    assert answer.returncode == 0, answer.stderr
    assert "stage sft: evaluation_loss" in answer.stdout
    artifact = artifacts.read(unpacked / "runs" / "tiny" / "stages" / "sft" / "artifact", verify=True)
    assert artifact.model.steps == 2


def test_trainer_refuses_a_bad_job_in_plain_words(unpacked: Path) -> None:
    (unpacked / "bad.textproto").write_text('name: "x" stages { name: "sft" sfd {} }')
    answer = run(unpacked, "finecut.trainer.main", "--config=bad.textproto", "--stage=sft")
    assert answer.returncode == 2, answer.stderr
    assert "did you mean sft?" in answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
