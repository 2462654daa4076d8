"""Builders for tests of recipes on preference pairs: tiny packed pairs, and a resolved job of one stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from finecut.dataprep import pairs, tokenization
from finecut.dataprep.documents import Document, example_id
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import artifacts
from finecut.trainer.recipes.testing import BLOCK_SIZE

_VOCABULARY = 500


def write_tiny_pairs(
    folder: Path, model: Path, num_blocks: int, num_evaluation_blocks: int = 0, alone: bool = False
) -> None:
    """Pairs whose chosen answer counts up from the prompt's last token, and whose rejected one counts down.

    A block holds one pair or two, some with a margin; `alone` True: the same pairs, each in a block of its own.
    """
    artifact = artifact_pb2.Artifact(
        job="tiny",
        stage="prepare",
        fingerprints=artifact_pb2.Fingerprints(tokenizer=tokenization.fingerprint(tokenization.load(model))),
        data=artifact_pb2.DataArtifact(
            block_size=BLOCK_SIZE, vocabulary_size=_VOCABULARY, kind=artifact_pb2.DataArtifact.PAIRS
        ),
    )
    random = np.random.default_rng(0)
    for split, size in (("train", num_blocks), ("evaluation", num_evaluation_blocks)):
        if size:
            writer = ShardWriter(folder, split, BLOCK_SIZE, 0, max_bytes=1 << 20, pairs=True)
            for number in range(size):
                documents = [_pair(random, number) for _ in range(1 + number % 2)]
                for block in [[document] for document in documents] if alone else [documents]:
                    writer.add(block)
            artifact.data.splits.append(writer.close())
    artifacts.write(folder, artifact)


def _pair(random: np.random.Generator, number: int) -> Document:
    start, num_prompt = int(random.integers(30, 60)), int(random.integers(1, 4))
    prompt = random.integers(10, 90, num_prompt).tolist()
    sides = []
    for direction in (1, -1):
        length = int(random.integers(2, 5))
        tokens = [*prompt, start, *(start + direction * (i + 1) for i in range(length))]
        sides.append(Document(np.array(tokens, np.int32), np.arange(len(tokens)) > num_prompt))
    pair = pairs.join(sides[0], sides[1], margin=0.5 if number % 3 == 0 else None)
    return dataclasses.replace(pair, example_id=example_id(pair))


def tiny_pairs_job(
    root: Path, kind: str, fields: str = "", training: str = "", model: str = "", storage: str = "runs"
) -> job_pb2.JobConfig:
    """A resolved job whose stage, named as its kind, trains `root`/model on `root`/pairs; arguments are text format."""
    text = f"""
        name: "tiny"
        storage {{ root: "{root / storage}" }}
        stages {{
          name: "{kind}"
          {kind} {{
            model {{ path: "{root / "model"}" {model} }}
            data: "{root / "pairs"}"
            training {{ optimizer {{ learning_rate: 1e-3 }} schedule {{ warmup_steps: 0 }} {training} }}
            {fields}
          }}
        }}
    """
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=root)
