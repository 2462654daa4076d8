"""Run folders: locking, refusing other configs, unwritable storage."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finecut.launcher import runs, testing
from finecut.proto import job_pb2
from finecut.proto.config import UserError, load_job, load_resolved


def job_in(folder: Path, *overrides: str) -> job_pb2.JobConfig:
    return load_job(testing.write_job(folder), overrides=overrides)


def test_opened_run_holds_the_resolved_config(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with runs.opened(job) as folder:
        assert load_resolved(folder.config) == job


def test_same_config_continues(tmp_path: Path) -> None:
    for _ in range(2):
        with runs.opened(job_in(tmp_path)):
            pass


def test_other_config_is_refused_with_the_difference_and_changes_nothing(tmp_path: Path) -> None:
    with runs.opened(job_in(tmp_path)) as folder:
        pass
    before = folder.config.read_bytes()
    with (
        pytest.raises(UserError, match=r"stages\[1\]\.sft\.training\.max_steps: 3 -> 4"),
        runs.opened(job_in(tmp_path, "stages.sft.sft.training.max_steps=4")),
    ):
        pytest.fail("opened")
    assert folder.config.read_bytes() == before


def test_safe_change_is_accepted_and_stored(tmp_path: Path) -> None:
    with runs.opened(job_in(tmp_path)):
        pass
    changed = job_in(tmp_path, "stages.sft.sft.training.checkpointing.keep_last=7")
    with runs.opened(changed) as folder:
        assert load_resolved(folder.config) == changed
    assert runs.identity(changed) == runs.identity(job_in(tmp_path))


def test_other_code_is_refused_with_the_difference_unless_accepted_each_time(tmp_path: Path, monkeypatch) -> None:
    job, accepting = job_in(tmp_path), job_in(tmp_path, "accept_other_code=true")
    with runs.opened(job):
        pass
    for number in (2, 3):
        monkeypatch.setattr(runs.fingerprint, "code_version", lambda number=number: f"0.1.0+{number}")
        with pytest.raises(UserError, match=rf"code version: \S+ -> 0.1.0\+{number}\n.*--set"), runs.opened(job):
            pytest.fail("opened")
        with runs.opened(accepting):
            pass
        with runs.opened(job):
            pass


def test_second_launcher_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    with runs.opened(job) as folder:
        assert runs.launcher_pid(folder) == os.getpid()
        with pytest.raises(UserError, match=rf"another launcher \(process {os.getpid()}\)"), runs.opened(job):
            pytest.fail("opened")
    assert runs.launcher_pid(folder) is None


def test_lock_of_a_killed_launcher_is_gone(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from finecut.launcher import runs\n"
        "from finecut.proto.config import load_job\n"
        "with runs.opened(load_job(sys.argv[1])):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = testing.write_job(tmp_path)
    killed = subprocess.run([sys.executable, "-c", program, str(path)], env=testing.environment(), timeout=300)
    assert killed.returncode == -9
    with runs.opened(load_job(path)) as folder:
        assert folder.config.is_file()


def test_file_in_the_place_of_storage_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    job = load_job(testing.write_job(tmp_path), storage_root=str(tmp_path / "file" / "runs"))
    before = sorted(tmp_path.rglob("*"))
    with (
        pytest.raises(UserError, match=r"storage\.root: .*file/runs' cannot be written .*Not a directory"),
        runs.opened(job),
    ):
        pytest.fail("opened")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_system_that_nobody_can_write_is_refused(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path), storage_root="/proc/finecut")
    with pytest.raises(UserError, match=r"storage\.root: '/proc/finecut' cannot be written"), runs.opened(job):
        pytest.fail("opened")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_storage_is_refused(tmp_path: Path) -> None:
    job = job_in(tmp_path)
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="Permission denied"), runs.opened(job):
        pytest.fail("opened")


def test_unknown_run_names_those_that_are_there(tmp_path: Path) -> None:
    with runs.opened(job_in(tmp_path)):
        pass
    with pytest.raises(UserError, match=r"no run 'tinny' \(runs there: tiny\)"):
        runs.find(tmp_path / "runs", "tinny")
