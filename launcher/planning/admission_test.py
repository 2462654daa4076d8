"""A job that cannot fit is refused before anything starts, and nothing that may fit is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from finecut.launcher.planning import admission, hardware
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.planning.testing import job_of, on_aws
from finecut.proto import job_pb2
from finecut.proto.config import ConfigError
from finecut.proto.run import RunFolder

LARGE = 'instance_types: "p5en.48xlarge"'
SMALL = 'instance_types: "g4dn.metal"'


def refusal(job: job_pb2.JobConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        admission.check(job)
    assert [problem.path for problem in caught.value.problems] == ["stages.sft"]
    return str(caught.value)


def test_machines_that_are_too_small_are_not_bought(tmp_path: Path) -> None:
    told = refusal(job_of(tmp_path, cluster=on_aws(SMALL)))
    assert "on each of 8 x T4 (1 x g4dn.metal), which have 14.6" in told
    assert "; this fits: parallelism {" in told and "--set accept_memory_plan=" in told


def test_machines_that_are_large_enough_are_bought(tmp_path: Path) -> None:
    admission.check(job_of(tmp_path, cluster=on_aws(LARGE)))


def test_a_second_choice_that_is_too_small_is_refused_too(tmp_path: Path) -> None:
    assert "1 x g4dn.metal" in refusal(job_of(tmp_path, cluster=on_aws(LARGE + " " + SMALL)))


def test_a_sentence_of_the_users_lets_it_start(tmp_path: Path) -> None:
    job = job_of(tmp_path, cluster=on_aws(SMALL))
    job.accept_memory_plan = "it fitted last week"
    admission.check(job)


@pytest.mark.parametrize("left", ["checkpoints/step-00000001/manifest.json", "artifact/manifest.json"])
def test_a_stage_that_has_run_has_shown_that_it_fits(tmp_path: Path, left: str) -> None:
    job = job_of(tmp_path, cluster=on_aws(SMALL))
    path = RunFolder.of(job).stage("sft") / left
    path.parent.mkdir(parents=True)
    path.touch()
    admission.check(job)


def test_hosts_whose_gpus_are_not_known_are_not_refused(tmp_path: Path) -> None:
    hosts = 'cluster { static { hosts { address: "10.0.0.2" access: SSH gpu_count: 1 } } }'
    job = job_of(tmp_path, cluster=hosts)
    assert hardware.choices(job) == []
    admission.check(job)


@pytest.mark.parametrize(("share", "is_refused"), [(0.99, True), (1.01, False)])
def test_what_is_short_by_less_than_the_error_of_its_estimate_may_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, is_refused: bool
) -> None:
    """A GPU with `share` of what the plan needs, less the error of 8% that docs/planner.md states."""
    job = job_of(tmp_path, training="max_steps: 1 compile: true")
    large = hardware.parse("H200")
    needed = admission.estimates.of_job(job, large)[0]["sft"].memory.total
    small = dataclasses.replace(large.device, memory=int(share * needed / 1.08))
    monkeypatch.setattr(hardware, "choices", lambda job: [Hardware(small, 1, 1)])
    if is_refused:
        refusal(job)
    else:
        admission.check(job)


def test_this_machines_gpus_are_those_that_programs_may_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'Tesla T4, 15360'\necho 'Tesla T4, 15360'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    job = job_of(tmp_path)
    # Asked once in a process; here anew each time.
    monkeypatch.setattr(hardware, "_gpus_here", hardware._gpus_here.__wrapped__)
    for visible, count in (("0,1", 2), ("1", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        (found,) = hardware.choices(job)
        assert (found.device.name, found.count, found.device.memory) == ("T4", count, 15 * 2**30)
    assert "T4" in refusal(job)
