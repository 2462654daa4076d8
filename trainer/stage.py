"""Runs one training stage of a job on this rank. The protobuf world ends here; recipes see dataclasses.

A stage's own code, and torch with it, is imported when the stage runs: wrong input is refused within a second.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from finecut.proto import artifact_pb2, job_pb2, rules_pb2
from finecut.proto.config import UserError, gates, reinforcement
from finecut.proto.config.walk import visit
from finecut.proto.run import RunFolder, artifacts, fingerprint, user_code
from finecut.trainer import stage_kinds

if TYPE_CHECKING:
    from finecut.trainer.config import StagePlace
    from finecut.trainer.recipes.supervised import TrainingResult


def run_stage(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact | None:
    """Runs `stage` of a resolved job to its artifact, as one rank of the group that the environment describes.

    Every rank calls it. Does nothing when the artifact is there already. Returns the artifact on rank 0, None on the
    others. Raises UserError for what the user can mend, and Preempted when it stopped on notice.
    """
    work = _stage(job, stage)
    user_code.use(job.code.paths)
    is_main = int(os.environ.get("RANK", "0")) == 0
    finished = _finished(job, stage)
    if finished is not None:
        return finished if is_main else None
    _check_inputs(job, work)
    if work.WhichOneof("work") in stage_kinds.TRAINED:
        return _train(job, work)
    return _run_alone(job, work) if is_main else None


def _run_alone(job: job_pb2.JobConfig, stage: job_pb2.Stage) -> artifact_pb2.Artifact:
    if stage.WhichOneof("work") == stage_kinds.EVALUATE:
        from finecut.trainer.evaluate.stage import run_evaluate

        return run_evaluate(job, stage.name)
    from finecut.trainer.stages import export

    return export.run_export(job, stage.name)


def _train(job: job_pb2.JobConfig, stage: job_pb2.Stage) -> artifact_pb2.Artifact | None:
    from finecut.trainer.config import StagePlace, TrainingConfig
    from finecut.trainer.keeping import EncryptionConfig
    from finecut.trainer.liveness import liveness
    from finecut.trainer.parallel import process_group
    from finecut.trainer.recipes import registry
    from finecut.trainer.rl import local_cluster

    run = RunFolder.of(job)
    work = getattr(stage, stage.WhichOneof("work") or "")
    place = StagePlace(
        stage=stage.name,
        config_fingerprint=fingerprint.of_stage(job, stage.name),
        code_version=user_code.version(job),
        accepts_other_code=job.accept_other_code,
        model=run.locate(work.model.path),
        data=run.locate(work.data),
        artifact=run.artifact(stage.name),
        checkpoints=run.checkpoint_place(job, stage.name),
        encryption=EncryptionConfig.from_proto(job.storage),
        ranks=run.ranks(stage.name),
        tensorboard=run.tensorboard(stage.name),
        events=run.events(stage.name),
        roles={role: run.locate(path) for role, path in registry.roles(stage).items()},
    )
    hang_timeout_s = TrainingConfig.from_proto(work.training).hang_timeout_s
    with (
        local_cluster.joined() if reinforcement.samples_itself(stage) else contextlib.nullcontext(),
        process_group.connect() as devices,
        liveness.watching(place.ranks, devices, hang_timeout_s) as alive,
    ):
        result = registry.run_of(job, stage, run.locate)(place, devices, alive)
    return _write_manifest(job, place, result) if devices.is_main else None


def _write_manifest(job: job_pb2.JobConfig, place: StagePlace, result: TrainingResult) -> artifact_pb2.Artifact:
    artifact = artifact_pb2.Artifact(
        job=job.name,
        stage=place.stage,
        fingerprints=artifact_pb2.Fingerprints(
            config=place.config_fingerprint,
            tokenizer=result.tokenizer_fingerprint,
            data=result.data_fingerprint,
            code=place.code_version,
        ),
        model=artifact_pb2.ModelArtifact(
            adapter=result.adapter, base_model=result.base_model, metrics=result.metrics, steps=result.steps
        ),
    )
    return artifacts.write(place.artifact, artifact)


def _stage(job: job_pb2.JobConfig, name: str) -> job_pb2.Stage:
    found = next((stage for stage in job.stages if stage.name == name), None)
    trainable = [stage.name for stage in job.stages if stage.WhichOneof("work") in stage_kinds.ALL]
    if found is None:
        raise UserError(f"--stage: the job has no stage {name!r}; use {_one_of(trainable)}")
    if found.name not in trainable:
        kind = found.WhichOneof("work")
        raise UserError(f"--stage: {name!r} is a {kind} stage, which is not the trainer's; use {_one_of(trainable)}")
    return found


def _one_of(names: list[str]) -> str:
    return "one of " + ", ".join(names) if names else "a job with a stage that trains or exports a model"


def _finished(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact | None:
    """The stage's artifact, if it is there and this config made it. Raises UserError when another config did."""
    folder = RunFolder.of(job).artifact(stage)
    if not (folder / artifacts.MANIFEST).exists():
        return None
    artifact = artifacts.read(folder)
    if artifact.fingerprints.config != fingerprint.of_stage(job, stage):
        raise UserError(
            f"{folder} was made with another config than this one; choose another storage.root or job name, or delete"
            f" {folder.parent} to run the stage anew"
        )
    return artifact


def _check_inputs(job: job_pb2.JobConfig, work: job_pb2.Stage) -> None:
    """Says which stage to run first when one that this one reads has not finished."""
    run = RunFolder.of(job)
    for reference in _references(work):
        if reference.startswith("@") and not (run.locate(reference) / artifacts.MANIFEST).exists():
            raise UserError(
                f"stage {work.name!r} reads {reference!r}, which has not finished in {run.root}; run stage"
                f" {reference[1:]!r} first, or run the whole job with the launcher"
            )


def _references(stage: job_pb2.Stage) -> Iterator[str]:
    """What the stage reads."""
    yield from (f"@{name}" for _, name in gates.baselines(stage.evaluate))
    for found in visit(stage):
        if found.rule.reference in (rules_pb2.REFERENCE_DATA, rules_pb2.REFERENCE_MODEL):
            yield found.value
