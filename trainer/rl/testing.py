"""Builders for tests with rollouts: a tiny policy that vLLM runs, prompts for it, and jobs; and what a run left."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from finecut.dataprep import pairs, tokenization
from finecut.dataprep.documents import Document, Task, example_id
from finecut.dataprep.prompt_shards import PromptWriter
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2, job_pb2, rollout_pb2, training_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.trainer.rollout.sample import FinishReason, Sample
from finecut.trainer.rollout.sampling import SamplingParameters
from finecut.trainer.rollout.testing import write_tiny_policy

_VOCABULARY = 500
# Token ids of answers that are preferred, and of those that are not.
_LIKED_AND_NOT = ((40, 80), (80, 120))


def write_tiny_inputs(root: Path, num_prompts: int = 16, num_tokens: int = 6, num_held_out: int = 0) -> None:
    """A random policy in `root`/model and prompts of as many random tokens each in `root`/data."""
    write_prompts(root / "data", write_tiny_policy(root / "model"), num_prompts, num_tokens, num_held_out)


def write_prompts(folder: Path, model: Path, num_prompts: int, num_tokens: int, num_held_out: int = 0) -> None:
    """Prompts of random tokens, as data preparation writes them; the number of each is its reference."""
    random = np.random.default_rng(0)
    artifact = artifact_pb2.Artifact(
        job="tiny",
        stage="prepare",
        fingerprints=artifact_pb2.Fingerprints(tokenizer=tokenization.fingerprint(tokenization.load(model))),
        data=artifact_pb2.DataArtifact(
            block_size=2 * num_tokens, vocabulary_size=_VOCABULARY, kind=artifact_pb2.DataArtifact.PROMPTS
        ),
    )
    for split, size in (("train", num_prompts), ("evaluation", num_held_out)):
        writer = PromptWriter(folder, split, 2 * num_tokens, max_bytes=1 << 20)
        for number in range(size):
            ids = random.integers(10, 400, num_tokens).astype(np.int32)
            document = Document(ids, np.zeros(num_tokens, bool), task=Task("tiny", reference=str(number)))
            writer.add(dataclasses.replace(document, example_id=example_id(document)))
        if size:
            artifact.data.splits.append(writer.close())
    artifacts.write(folder, artifact)


def write_preferences(folder: Path, model: Path, num_pairs: int) -> None:
    """Pairs in which answers of some token ids are preferred, whatever the prompt: easy to judge, and easy to learn."""
    random = np.random.default_rng(1)
    artifact = artifact_pb2.Artifact(
        job="tiny",
        stage="prepare",
        fingerprints=artifact_pb2.Fingerprints(tokenizer=tokenization.fingerprint(tokenization.load(model))),
        data=artifact_pb2.DataArtifact(
            block_size=32, vocabulary_size=_VOCABULARY, kind=artifact_pb2.DataArtifact.PAIRS
        ),
    )
    for split, size in (("train", num_pairs), ("evaluation", num_pairs // 8)):
        writer = ShardWriter(folder, split, 32, 0, max_bytes=1 << 20, pairs=True)
        for _ in range(size):
            prompt, length = random.integers(10, 400, 6), int(random.integers(3, 8))
            sides = [np.concatenate([prompt, random.integers(*ids, length)]) for ids in _LIKED_AND_NOT]
            masks = [np.arange(len(side)) >= len(prompt) for side in sides]
            chosen, rejected = (Document(side.astype(np.int32), mask) for side, mask in zip(sides, masks, strict=True))
            writer.add([pairs.join(chosen, rejected, margin=None)])
        artifact.data.splits.append(writer.close())
    artifacts.write(folder, artifact)


def tiny_job(
    root: Path,
    kind: str,
    fields: str = "",
    training: str = "",
    rollout: str = "",
    lora: str = "",
    storage: str = "runs",
    cluster: str = "",
    stages: str = "",
) -> job_pb2.JobConfig:
    """A resolved job with one stage, "train", on what `write_tiny_inputs` wrote; the arguments are text format."""
    text = f"""
        name: "tiny"
        storage {{ root: "{root / storage}" }}
        {cluster}
        stages {{
          name: "train"
          {kind} {{
            model {{ path: "{root / "model"}" {lora} }}
            data: "{root / "data"}"
            rollout {{ prompts_per_step: 4 max_new_tokens: 8 }}
            training {{ optimizer {{ learning_rate: 1e-3 }} schedule {{ warmup_steps: 0 kind: CONSTANT }} }}
            {fields}
          }}
        }}
        {stages}
    """
    job = text_format.Parse(text, job_pb2.JobConfig())
    work = getattr(job.stages[0], kind)
    work.rollout.MergeFrom(text_format.Parse(rollout, rollout_pb2.Rollout()))
    work.training.MergeFrom(text_format.Parse(training, training_pb2.TrainingConfig()))
    return resolve(job, base_dir=root)


def steps(job: job_pb2.JobConfig) -> list[dict[str, float]]:
    """What each step of the stage `train` recorded."""
    return [event["step"]["values"] for event in _lines(RunFolder.of(job).events("train")) if "step" in event]


def evaluations(job: job_pb2.JobConfig) -> dict[int, dict[str, float]]:
    """What was measured of held-out prompts, by step."""
    found = [event["evaluation"] for event in _lines(RunFolder.of(job).events("train")) if "evaluation" in event]
    return {int(one.get("step", 0)): one["values"] for one in found}


def messages(job: job_pb2.JobConfig) -> str:
    """What its event log says, a line each."""
    return "\n".join(event.get("message", "") for event in _lines(RunFolder.of(job).events("train")))


def samples(job: job_pb2.JobConfig) -> list[dict[str, Any]]:
    """Its samples.jsonl."""
    return _lines(RunFolder.of(job).stage("train") / "samples.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def make_sample(num_prompt: int, num_answer: int, inserted: tuple[int, ...] = ()) -> Sample:
    """A sample of version 0 with tokens that tell places apart; `inserted`: places that the environment wrote."""
    mask = tuple(t not in inserted for t in range(num_answer))
    return Sample(
        record_id=f"tiny/{num_prompt}-{num_answer}",
        sample_index=0,
        seed=0,
        prompt_ids=tuple(range(20, 20 + num_prompt)),
        answer_ids=tuple(100 + 10 * num_prompt + t for t in range(num_answer)),
        loss_mask=mask,
        log_probabilities=tuple(-0.5 - 0.1 * t if is_sampled else 0.0 for t, is_sampled in enumerate(mask)),
        policy_versions=(0,) * num_answer,
        weights={0: "w"},
        sampling=SamplingParameters(),
        finish_reason=FinishReason.STOP,
    )
