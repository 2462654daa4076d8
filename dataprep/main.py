"""Runs one data_prep stage of a job.

Usage: bazel run //dataprep -- --config=job.textproto [--stage=prepare] [--storage_root=FOLDER] [--set=PATH=VALUE ...]

Exit codes: 0 done, 1 failed, 2 invalid input.
"""

import sys

from absl import app, flags

from finecut.dataprep.stage import run_stage
from finecut.proto import job_pb2
from finecut.proto.config import UserError, load_job
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow

_CONFIG = flags.DEFINE_string("config", None, "The job file.", required=True)
_STAGE = flags.DEFINE_string("stage", None, "The data_prep stage. Unset: the only one.")
_STORAGE_ROOT = flags.DEFINE_string("storage_root", None, "Replaces the job's storage.root.")
_SET = flags.DEFINE_multi_string("set", [], "Overrides one field of the job, as PATH=VALUE. Repeatable.")


def main(arguments: list[str]) -> int:
    try:
        if arguments[1:]:
            raise UserError(f"{arguments[1]!r} is not a flag; everything is given as --flag=value")
        job = load_job(_CONFIG.value, overrides=_SET.value, storage_root=_STORAGE_ROOT.value)
        stage = _STAGE.value or _only_stage(job)
        run = RunFolder.of(job)
        _, position = follow(run.events(stage))
        run_stage(job, stage)
        for event in follow(run.events(stage), position)[0]:
            if event.message:
                print(event.message)
        print(f"prepared data: {run.artifact(stage) / artifacts.MANIFEST}")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _only_stage(job: job_pb2.JobConfig) -> str:
    names = [stage.name for stage in job.stages if stage.WhichOneof("work") == "data_prep"]
    if len(names) != 1:
        raise UserError(f"--stage: the job has {len(names)} data_prep stages ({', '.join(names)}); name one")
    return names[0]


def parse_flags(arguments: list[str]) -> list[str]:
    """As absl does it, but a wrong flag exits with 2 as any wrong input does."""
    try:
        return flags.FLAGS(arguments)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
