"""Rules of what a stage takes of the machines."""

from collections.abc import Iterator

from finecut.proto import job_pb2
from finecut.proto.config import recipes, reinforcement
from finecut.proto.config.errors import Problem


def check(stage: job_pb2.Stage, path: str) -> Iterator[Problem]:
    """Problems of one stage's `resources`."""
    taken = stage.resources
    if not taken.HasField("max_gpu_count"):
        return
    if stage.WhichOneof("work") not in (*recipes.SUPERVISED, *reinforcement.REINFORCEMENT):
        yield Problem(f"{path}.max_gpu_count", "is for stages that train; others take gpu_count")
    elif not taken.HasField("gpu_count"):
        yield Problem(f"{path}.gpu_count", "is needed beside max_gpu_count: the fewest that the stage starts with")
    elif taken.max_gpu_count < taken.gpu_count:
        yield Problem(f"{path}.max_gpu_count", f"{taken.max_gpu_count} is less than gpu_count, {taken.gpu_count}")
