"""The evaluate stage: measures a model, writes what it found, and fails where a gate does.

model, and what gates compare it with -> scores -> gates -> results, scores.json, answers.jsonl -> artifact
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.run import RunFolder, artifacts, fingerprint, user_code
from finecut.proto.run.events import EventLog
from finecut.trainer.evaluate import gate_check
from finecut.trainer.evaluate.config import EvaluateConfig
from finecut.trainer.evaluate.measure import Measurement, Texts
from finecut.trainer.evaluate.scores import Scores

SCORES = "scores.json"
ANSWERS = "answers.jsonl"
# What was found, where a gate failed and there is no artifact.
_FAILED = "failed"


def run_evaluate(job: job_pb2.JobConfig, stage: str) -> artifact_pb2.Artifact:
    """Runs the stage in this process.

    Raises UserError where something cannot be measured, and GateFailedError, one too, where a gate does not hold: what
    was measured is then in the stage's folder `failed`, and stages that need this one do not run.
    """
    run = RunFolder.of(job)
    config = EvaluateConfig.from_proto(next(s for s in job.stages if s.name == stage).evaluate, run.locate)
    folder = run.stage(stage)
    with EventLog(run.events(stage), stage) as log:
        measurement = Measurement(run.locate(config.model), config.tasks, config.tensor_parallel_size, config.seed)
        found = measurement.run()
        results = [_result(scores, config.seed) for scores in found]
        for result in results:
            log.message(
                f"{result.task}: {result.metric} {result.value:.4g}, 95% interval {result.low:.4g} to"
                f" {result.high:.4g}, {result.example_count:,} examples"
            )
        unfinished = folder / "artifact.partial"
        for old in (unfinished, folder / _FAILED, run.artifact(stage)):
            shutil.rmtree(old, ignore_errors=True)
        write_scores(unfinished, found, measurement.texts)
        try:
            baselines = _baselines(config, job, run)
            for said in gate_check.require(config.gates, found, baselines, config.seed):
                log.message(f"gate holds: {said}")
        except gate_check.GateFailedError:
            unfinished.rename(folder / _FAILED)
            raise
        artifact = artifact_pb2.Artifact(
            job=job.name, stage=stage, evaluation=artifact_pb2.EvaluationArtifact(results=results)
        )
        artifact.fingerprints.config = fingerprint.of_stage(job, stage)
        artifact.fingerprints.code = user_code.version(job)
        artifact = artifacts.write(unfinished, artifact)
        unfinished.rename(run.artifact(stage))
    return artifact


def write_scores(folder: Path, found: Sequence[Scores], texts: Texts) -> None:
    """The number of every example, which other evaluations compare with, and what was answered."""
    folder.mkdir(parents=True)
    rows = [
        {
            "task": scores.task,
            "metric": scores.metric,
            "examples": list(scores.example_ids_N),
            "values": scores.values_N.tolist(),
            "weights": None if scores.weights_N is None else scores.weights_N.tolist(),
            "is_exponential": scores.is_exponential,
            "higher_is_better": scores.higher_is_better,
        }
        for scores in found
    ]
    (folder / SCORES).write_text(json.dumps(rows) + "\n", encoding="utf-8")
    with (folder / ANSWERS).open("w", encoding="utf-8") as file:
        for task, answers in texts.items():
            for example, text in answers.items():
                file.write(json.dumps({"task": task, "example": example, "answer": text}, ensure_ascii=False) + "\n")


def read_scores(folder: Path) -> list[Scores]:
    """Those of an evaluation's artifact. Raises ArtifactError where it is damaged."""
    artifacts.read(folder, verify=True)
    rows = json.loads((folder / SCORES).read_text(encoding="utf-8"))
    return [
        Scores(
            row["task"],
            row["metric"],
            tuple(row["examples"]),
            np.array(row["values"], float),
            None if row["weights"] is None else np.array(row["weights"], float),
            row["is_exponential"],
            row["higher_is_better"],
        )
        for row in rows
    ]


def _baselines(config: EvaluateConfig, job: job_pb2.JobConfig, run: RunFolder) -> dict[str, list[Scores]]:
    """What gates compare with: another evaluation's scores, or the same tasks on another stage's model."""
    kinds = {stage.name: stage.WhichOneof("work") for stage in job.stages}
    found = {}
    for name in dict.fromkeys(gate.stage for gate in config.gates if gate.stage):
        if kinds[name] == "evaluate":
            found[name] = read_scores(run.artifact(name))
            continue
        wanted = [gate for gate in config.gates if gate.stage == name]
        tasks = {task: how for task, how in config.tasks.items() if any(gate.task in (None, task) for gate in wanted)}
        found[name] = Measurement(run.artifact(name), tasks, config.tensor_parallel_size, config.seed).run()
    return found


def _result(scores: Scores, seed: int) -> artifact_pb2.EvaluationArtifact.Result:
    interval = scores.interval(seed)
    return artifact_pb2.EvaluationArtifact.Result(
        task=scores.task,
        metric=scores.metric,
        value=interval.value,
        low=interval.low,
        high=interval.high,
        example_count=len(scores.values_N),
    )
