"""Runs one data_prep stage of a job, or looks at what it made.

Usage: bazel run //dataprep -- [prepare | lint] --config=job.textproto [--stage=prepare] [--storage_root=FOLDER]
                               [--set=PATH=VALUE ...]

`prepare`, which need not be written, runs the stage. `lint` looks at every block of its finished artifact again.
Exit codes: 0 done, 1 failed, 2 invalid input or data that must not be trained on.
"""

import sys
from collections.abc import Callable

from absl import app, flags

from finecut.dataprep.review import REPORT, lint, summary
from finecut.dataprep.stage import find, run_stage
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
        verb = _verb(arguments[1:])
        job = load_job(_CONFIG.value, overrides=_SET.value, storage_root=_STORAGE_ROOT.value)
        return verb(job, _STAGE.value or _only_stage(job))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _prepare(job: job_pb2.JobConfig, stage: str) -> int:
    run = RunFolder.of(job)
    _, position = follow(run.events(stage))
    run_stage(job, stage)
    for event in follow(run.events(stage), position)[0]:
        if event.message:
            print(event.message)
    print(f"prepared data: {run.artifact(stage) / artifacts.MANIFEST}")
    print(f"report: {run.artifact(stage) / REPORT}")
    return 0


def _lint(job: job_pb2.JobConfig, stage: str) -> int:
    data_prep = find(job, stage)
    folder = RunFolder.of(job).artifact(stage)
    manifest = artifacts.read(folder, verify=True)
    findings = lint(folder, manifest, data_prep)
    print(summary(findings, manifest.data))
    findings.check()
    return 0


_VERBS = {"prepare": _prepare, "lint": _lint}


def _verb(arguments: list[str]) -> Callable[[job_pb2.JobConfig, str], int]:
    verb, *rest = arguments or ["prepare"]
    if verb not in _VERBS:
        raise UserError(f"{verb!r} is not a verb; use one of: {', '.join(_VERBS)}")
    if rest:
        raise UserError(f"{rest[0]!r} is not a flag; everything but the verb is given as --flag=value")
    return _VERBS[verb]


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
