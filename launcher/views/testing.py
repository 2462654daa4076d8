"""Run folders for tests of what people look at, written as the launcher and its stages write them."""

import math
from pathlib import Path

from finecut.launcher import runs, testing
from finecut.launcher.journal import Journal
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import load_job
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog

STEPS = 60


def write_run(folder: Path, name: str = "tiny", overrides: tuple[str, ...] = (), scale: float = 1.0) -> RunFolder:
    """A finished run below <folder>/runs whose losses are `scale` times those of others."""
    run, job = open_run(folder, name, overrides)
    with runs.opened(job):
        journal = Journal(run)
        for stage in ("prepare", "sft", "export"):
            journal.started(stage)
            if stage == "sft":
                write_steps(run, stage, range(1, STEPS + 1), scale)
            write_artifact(run, job, stage, scale)
            journal.succeeded(stage)
    return run


def open_run(folder: Path, name: str = "tiny", overrides: tuple[str, ...] = ()) -> tuple[RunFolder, job_pb2.JobConfig]:
    """A resolved job with data preparation, training and export, and its run folder, which does not exist yet."""
    job = load_job(testing.write_job(folder, name), overrides=overrides)
    return RunFolder.of(job), job


def write_steps(run: RunFolder, stage: str, steps: range, scale: float = 1.0) -> None:
    """What a training stage records."""
    with EventLog(run.events(stage), stage) as log:
        for step in steps:
            values = {
                "loss": scale * (1 + 2 * math.exp(-step / 20)),
                "tokens_per_second": 900.0 + step,
                "padded_tokens_per_second": 1000.0,
                "peak_memory_gib": 1.5,
                "memory_limit_gib": 2.0,
                "learning_rate": 1e-4 * (1 - step / (STEPS + 1)),
                "data_wait_seconds": 0.001,
            }
            log.step(step, STEPS, values)
        log.message(f"evaluation loss {scale:.4f} after step {steps[-1]}")
        log.evaluation(steps[-1], {"loss": scale})


def write_artifact(run: RunFolder, job: job_pb2.JobConfig, stage: str, scale: float = 1.0) -> None:
    """The stage's artifact, with what its kind says of itself."""
    artifact = artifact_pb2.Artifact(job=job.name, stage=stage)
    artifact.fingerprints.config = fingerprint.of_stage(job, stage)
    folder = run.artifact(stage)
    folder.mkdir(parents=True)
    if stage == "prepare":
        (folder / "report.html").write_text(
            "<!doctype html><meta name='color-scheme' content='light dark'><title>Data</title><p>tokens</p>"
        )
    else:
        artifact.model.metrics.update(
            loss=1.1 * scale, evaluation_loss=1.2 * scale, first_evaluation_loss=3.0, rounding_divergence=1e-5
        )
    if stage == "export":
        artifact.model.samples.add(prompt="What is <AI>?", answer="A & B.", answer_before="I am a model." * 4)
    artifacts.write(folder, artifact)
