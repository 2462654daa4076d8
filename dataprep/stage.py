"""Runs a data_prep stage of a job: once, whole or not at all."""

import hashlib
import shutil
from pathlib import Path

from finecut.dataprep import segment_work, segments, tokenization
from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.prepare import fingerprint_of_inputs, prepare
from finecut.dataprep.rehearsal import rehearse
from finecut.dataprep.review import review
from finecut.proto import artifact_pb2, data_pb2, job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, artifacts, files, fingerprint, user_code
from finecut.proto.run.events import EventLog

# Beside the artifact, while the stage is not done: finished segments.
_WORK = "work"


def run_stage(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Prepares the data of one stage of a resolved job and returns its artifact.

    A finished artifact of the same config and data is returned as it is; one of another config or data is never
    overwritten. Nothing becomes an artifact that the linter refuses. Shards that a killed try left behind are removed,
    its finished segments are taken over. Where the input or the config is wrong, nothing stays.
    Raises UserError.
    """
    data_prep = find(job, stage)
    job = user_code.snapshot(job)  # workers read it from the storage, which all machines share
    config = PrepareConfig.from_proto(data_prep, tuple(job.code.paths))
    run = RunFolder.of(job)
    folder = run.artifact(stage)
    work = run.stage(stage) / _WORK
    if (folder / artifacts.MANIFEST).exists():
        artifact = _reuse(folder, fingerprint.of_stage(job, stage), config)
        shutil.rmtree(work, ignore_errors=True)  # where a try was killed between the manifest and the end
        return artifact
    shutil.rmtree(folder, ignore_errors=True)
    with EventLog(run.events(stage), stage) as log:
        try:
            plan = segments.plan(config)
            if len(plan.segments) > 1:
                rehearse(config)
            _open_work(work, _fingerprint_of_work(job, stage, config, plan))
            folder.mkdir(parents=True)
            manifest = prepare(config, plan, folder, work, log)
            manifest.job, manifest.stage = job.name, stage
            manifest.fingerprints.config = fingerprint.of_stage(job, stage)
            manifest.fingerprints.code = user_code.version(job)
            review(folder, manifest, data_prep)
            artifact = artifacts.write(folder, manifest)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, UserError):
                # It asks for other inputs or another config, and finished segments are good for these only.
                shutil.rmtree(work, ignore_errors=True)
            raise
    shutil.rmtree(work, ignore_errors=True)
    return artifact


def _fingerprint_of_work(job: job_pb2.JobConfig, stage: str, config: PrepareConfig, plan: segments.Plan) -> str:
    """SHA-256 of all that decides what segments are and what becomes of them."""
    parts = [
        fingerprint.of_stage(job, stage),
        user_code.version(job),
        tokenization.fingerprint(segment_work.load_tokenizer(config)),
        plan.fingerprint,
        *(f"{segment.path} {segment.span}" for segment in plan.segments),
    ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _open_work(folder: Path, wanted: str) -> None:
    """Makes the folder of segments; what an earlier try left in it stays where it was the same work."""
    mark = folder / "fingerprint"
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        files.write_atomically(mark, wanted)


def find(job: job_pb2.JobConfig, name: str) -> data_pb2.DataPrep:
    """The data_prep stage of this name. Raises UserError where there is none."""
    names = [stage.name for stage in job.stages if stage.WhichOneof("work") == "data_prep"]
    for stage in job.stages:
        if stage.name == name and name in names:
            return stage.data_prep
    raise UserError(f"stage {name!r} is not a data_prep stage of job {job.name!r}; it has {', '.join(names) or 'none'}")


def _reuse(folder: Path, config_fingerprint: str, config: PrepareConfig) -> artifact_pb2.Artifact:
    artifact = artifacts.read(folder, verify=True)
    advice = "give the job another name or storage root, or delete the folder"
    if artifact.fingerprints.config != config_fingerprint:
        raise UserError(f"{folder} was prepared with another config and is not overwritten; {advice}")
    if artifact.fingerprints.data != fingerprint_of_inputs(config):
        raise UserError(f"{folder} was prepared from files that have changed since, and is not overwritten; {advice}")
    return artifact
