"""Builders for tests of training: a tiny model, tiny prepared data, a resolved job, and ranks as processes."""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.multiprocessing
from google.protobuf import text_format

from finecut.dataprep import tokenization
from finecut.dataprep.document_shards import DocumentWriter
from finecut.dataprep.documents import Document, example_id
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import artifacts
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.testing import write_tiny_llama

BLOCK_SIZE = 32
_VOCABULARY = 500
_PAD = 0


def write_tiny_inputs(
    root: Path,
    num_blocks: int = 12,
    num_evaluation_blocks: int = 4,
    packed: bool = True,
    write_model: Callable[[Path], Path] = write_tiny_llama,
) -> None:
    """Writes a random model to `root`/model and learnable packed data for it to `root`/data.

    Documents count upwards from a random token, so there is something to learn; how many of their tokens are trained
    varies widely from block to block, and one document in a block ends before its padding. With `packed` False the
    shards hold the same documents one by one, for the trainer to pack eight at a time.
    """
    write_tiny_data(root / "data", write_model(root / "model"), num_blocks, num_evaluation_blocks, packed)


def write_tiny_data(
    folder: Path, model: Path, num_blocks: int, num_evaluation_blocks: int = 0, packed: bool = True, alone: bool = False
) -> None:
    """The data of `write_tiny_inputs`; `alone` True: the same documents, each in a block of its own."""
    fingerprint = tokenization.fingerprint(tokenization.load(model))
    random = np.random.default_rng(0)
    artifact = artifact_pb2.Artifact(
        job="tiny",
        stage="prepare",
        fingerprints=artifact_pb2.Fingerprints(tokenizer=fingerprint),
        data=artifact_pb2.DataArtifact(block_size=BLOCK_SIZE, vocabulary_size=_VOCABULARY, pad_token_id=_PAD),
    )
    for split, size in (("train", num_blocks), ("evaluation", num_evaluation_blocks)):
        if size:
            blocks = [[_document(random, 18), _document(random, int(random.integers(4, 13)))] for _ in range(size)]
            if alone:
                blocks = [[document] for block in blocks for document in block]
            artifact.data.splits.append(_write(folder, split, blocks, packed))
    if not packed:
        artifact.data.packed, artifact.data.window_documents = False, 8
    artifacts.write(folder, artifact)


def _write(folder: Path, split: str, blocks: list[list[Document]], packed: bool) -> artifact_pb2.DataArtifact.Split:
    if packed:
        writer = ShardWriter(folder, split, BLOCK_SIZE, _PAD, max_bytes=1 << 20)
        for block in blocks:
            writer.add(block)
        return writer.close()
    documents = DocumentWriter(folder, split, BLOCK_SIZE, max_bytes=1 << 20)
    for document in itertools.chain.from_iterable(blocks):
        documents.add(document)
    return documents.close()


def _document(random: np.random.Generator, length: int) -> Document:
    start = int(random.integers(10, 60))
    loss_mask_T = np.arange(length) >= int(random.integers(1, length))
    document = Document((start + np.arange(length)).astype(np.int32), loss_mask_T)
    return dataclasses.replace(document, example_id=example_id(document))


def tiny_job(
    root: Path, training: str = "", lora: str = "", storage: str = "runs", cluster: str = ""
) -> job_pb2.JobConfig:
    """A resolved job with one stage, "sft", on what `write_tiny_inputs` wrote; the arguments are text format."""
    text = f"""
        name: "tiny"
        storage {{ root: "{root / storage}" }}
        {cluster}
        stages {{
          name: "sft"
          sft {{
            model {{ path: "{root / "model"}" {lora} }}
            data: "{root / "data"}"
            training {{
              optimizer {{ learning_rate: 1e-2 }}
              schedule {{ warmup_steps: 0 }}
              {training}
            }}
          }}
        }}
    """
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=root)


def run_ranks(world_size: int, function: Callable[..., None], *arguments: Any) -> None:
    """Calls `function(*arguments)` in `world_size` processes with torchrun's environment; raises if one fails."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # Ranks are forks of one process that has imported what the first of them need, which takes each of them seconds.
    multiprocessing.set_forkserver_preload([function.__module__, "finecut.trainer.recipes.supervised"])
    torch.multiprocessing.start_processes(
        _enter,
        args=(dict(os.environ), world_size, port, function, arguments),
        nprocs=world_size,
        start_method="forkserver",
    )


def _enter(
    rank: int,
    environment: dict[str, str],
    world_size: int,
    port: int,
    function: Callable[..., None],
    arguments: tuple[Any, ...],
) -> None:
    os.environ |= environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    function(*arguments)
    leave(0)
