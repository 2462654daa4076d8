"""Runs one data_prep stage of a job, or looks at what it made.

Usage: bazel run //dataprep -- [prepare | lint] --config=job.textproto [--stage=prepare] [--dry_run]
                               [--storage_root=FOLDER] [--set=PATH=VALUE ...]
       bazel run //dataprep -- [prepare | lint] --manifest=data.yaml [--dry_run] ...

`prepare`, which need not be written, runs the stage; with --dry_run, all of it on a sample, of which only the report is
kept. `lint` looks at every block of its finished artifact again. A manifest (finecut.v1.DataManifest, in YAML or text
format) describes data alone.
Exit codes: 0 done, 1 failed, 2 invalid input or data that must not be trained on.
"""

import sys
from collections.abc import Callable

from absl import app, flags

from finecut.dataprep.rehearsal import dry_run
from finecut.dataprep.review import REPORT, lint, summary
from finecut.dataprep.stage import find, run_stage
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, load_job, load_manifest
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow

_CONFIG = flags.DEFINE_string("config", None, "The job file.")
_MANIFEST = flags.DEFINE_string("manifest", None, "A manifest of data alone, in place of a job file.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Prepares a sample and keeps only its report.")
_STAGE = flags.DEFINE_string("stage", None, "The data_prep stage. Unset: the only one.")
_STORAGE_ROOT = flags.DEFINE_string("storage_root", None, "Replaces the job's storage.root.")
_SET = flags.DEFINE_multi_string("set", [], "Overrides one field of the job, as PATH=VALUE. Repeatable.")


def main(arguments: list[str]) -> int:
    try:
        verb = _verb(arguments[1:])
        job = _load()
        return verb(job, _STAGE.value or _only_stage(job))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _load() -> job_pb2.JobConfig:
    overrides, root = _SET.value, _STORAGE_ROOT.value
    if _CONFIG.value is not None and _MANIFEST.value is None:
        return load_job(_CONFIG.value, overrides, root)
    if _MANIFEST.value is not None and _CONFIG.value is None:
        return load_manifest(_MANIFEST.value, overrides, root)
    raise UserError("--config: give a job file with it, or a manifest of data alone with --manifest")


def _prepare(job: job_pb2.JobConfig, stage: str) -> int:
    run = RunFolder.of(job)
    if _DRY_RUN.value:
        report = run.stage(stage) / _DRY_RUN_REPORT
        found = dry_run(find(job, stage), report)
        print("\n".join([_describe_sources(found.data), *found.messages]))
        print("every trained span decodes back to what the assistant said, and the linter found nothing")
        print(f"report of the sample: {report}")
        return 0
    _, position = follow(run.events(stage))
    run_stage(job, stage)
    for event in follow(run.events(stage), position)[0]:
        if event.message:
            print(event.message)
    print(f"prepared data: {run.artifact(stage) / artifacts.MANIFEST}")
    print(f"report: {run.artifact(stage) / REPORT}")
    return 0


def _describe_sources(data: artifact_pb2.DataArtifact) -> str:
    """One line a source."""
    return "\n".join(
        f"{source.name}: {source.record_count:,} records looked at, {source.bad_record_count:,} bad, "
        f"{sum(source.filtered_record_counts.values()):,} left out by the filter"
        for source in data.sources
    )


def _lint(job: job_pb2.JobConfig, stage: str) -> int:
    data_prep = find(job, stage)
    folder = RunFolder.of(job).artifact(stage)
    manifest = artifacts.read(folder, verify=True)
    findings = lint(folder, manifest, data_prep)
    print(summary(findings, manifest.data))
    findings.check()
    return 0


_DRY_RUN_REPORT = "dry_run.html"
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
