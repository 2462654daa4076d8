"""What differs between the configs of two runs, stage by stage: by their names, not by their places in the file."""

from collections.abc import Iterator
from dataclasses import dataclass

from finecut.proto import job_pb2
from finecut.proto.config.compare import flatten

UNSET = "unset"


@dataclass(frozen=True)
class Difference:
    """One field. Example: path "sft.training.max_steps", left "16", right "32"."""

    path: str
    left: str
    right: str


def differences(left: job_pb2.JobConfig, right: job_pb2.JobConfig) -> list[Difference]:
    """Every field of two resolved jobs that differs, those that are safe to change among them; names and places aside.

    A stage that only one of them has is one difference.
    """
    shared = {stage.name for stage in left.stages} & {stage.name for stage in right.stages}
    before, after = dict(_leaves(left, shared)), dict(_leaves(right, shared))
    return [
        Difference(path, before.get(path, UNSET), after.get(path, UNSET))
        for path in dict.fromkeys([*before, *after])
        if before.get(path) != after.get(path)
    ]


def _leaves(job: job_pb2.JobConfig, shared: set[str]) -> Iterator[tuple[str, str]]:
    for stage in job.stages:
        work = stage.WhichOneof("work") or ""
        yield stage.name, work
        if stage.name in shared:
            for path, value in flatten(stage, with_safe=True).items():
                if path != "name":
                    yield f"{stage.name}.{path.removeprefix(f'{work}.')}", value
    rest = job_pb2.JobConfig()
    rest.CopyFrom(job)
    for field in ("stages", "name", "storage", "accept_other_code"):
        rest.ClearField(field)
    yield from flatten(rest, with_safe=True).items()
