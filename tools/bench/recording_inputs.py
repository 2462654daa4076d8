"""What the benchmark of recording trains: a random model, packed data of two sources, and the run's setup."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from google.protobuf import text_format

from finecut.dataprep import tokenization
from finecut.dataprep.documents import Document, example_id
from finecut.dataprep.shards import ShardWriter
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import resolve
from finecut.proto.run import RunFolder, artifacts
from finecut.tools.gpu_bench import models
from finecut.trainer.config import StagePlace
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.ops import kernels
from finecut.trainer.parallel import mesh
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.supervised import Setup
from finecut.trainer.recipes.supervised_data import open_data
from finecut.trainer.testing import write_tiny_llama

_VOCABULARY = 500  # of the tokenizer
_BLOCKS = 64
_SOURCES = ("first", "second")


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model, and the steps that it takes: each block holds equal documents, so that steps cost alike."""

    name: str
    block: int
    document: int
    global_blocks: int
    training: str
    write: Callable[[Path], Path]


SHAPES = {
    "tiny": Shape("2 layers of 64", 64, 16, 2, "", write_tiny_llama),
    "small": Shape(
        "4 layers of 256",
        256,
        64,
        4,
        "",
        lambda folder: write_tiny_llama(
            folder, hidden_size=256, intermediate_size=640, num_hidden_layers=4, initializer_range=0.05
        ),
    ),
    "0.6B": Shape(
        "Qwen3-0.6B, 32,768 tokens a step",
        8_192,
        512,
        4,
        "precision: BF16 compile: true batch { micro_blocks: 2 }",
        lambda folder: models.write_model(models.SHAPES["0.6B"], folder),
    ),
}


def make(
    root: Path, shape: Shape, num_steps: int, every: int, example_losses: bool, devices: Devices
) -> tuple[Setup, SftConfig]:
    """Writes model and data below `root`, and opens them as `supervised.run` does. Collective."""
    if devices.is_main:
        _write_data(root / "data", shape.write(root / "model"), shape)
    devices.barrier()
    job = _job(root, shape, num_steps, every, example_losses)
    config = SftConfig.from_proto(job.stages[0].sft)
    training = config.training
    kernels.use(training.kernels, devices.device)
    source = locate_model(root / "model")
    decoder = DecoderConfig.from_folder(source.base)
    precision = number_formats.resolve(training.precision, devices.device, decoder.family)
    devices = mesh.arrange(devices, training.parallelism)
    data = open_data(root / "data", source, decoder, training, devices)
    return Setup(_place(job), source, decoder, precision, data, devices), config


def recorded(setup: Setup) -> list[dict[str, float]]:
    """What the event log has of each step that was recorded."""
    lines = map(json.loads, setup.place.events.read_text(encoding="utf-8").splitlines())
    return [event["step"]["values"] for event in lines if "step" in event]


def _job(root: Path, shape: Shape, num_steps: int, every: int, example_losses: bool) -> job_pb2.JobConfig:
    text = f"""
        name: "recording"
        storage {{ root: "{root / "runs"}" }}
        stages {{
          name: "sft"
          sft {{
            model {{ path: "{root / "model"}" }}
            data: "{root / "data"}"
            record_example_losses: {str(example_losses).lower()}
            training {{
              max_steps: {num_steps}
              optimizer {{ learning_rate: 1e-4 }}
              metrics {{ detail_every_steps: {every} }}
            }}
          }}
        }}
    """
    job = text_format.Parse(text, job_pb2.JobConfig())
    text_format.Merge(shape.training, job.stages[0].sft.training)
    job.stages[0].sft.training.batch.global_blocks = shape.global_blocks
    return resolve(job, base_dir=root)


def _place(job: job_pb2.JobConfig) -> StagePlace:
    """As trainer.stage makes it."""
    run, work = RunFolder.of(job), job.stages[0].sft
    return StagePlace(
        stage="sft",
        config_fingerprint="",
        code_version="",
        accepts_other_code=False,
        model=Path(work.model.path),
        data=Path(work.data),
        artifact=run.artifact("sft"),
        checkpoints=run.checkpoint_place(job, "sft"),
        encryption=None,
        ranks=run.ranks("sft"),
        tensorboard=run.tensorboard("sft"),
        events=run.events("sft"),
        roles={},
    )


def _write_data(folder: Path, model: Path, shape: Shape) -> None:
    """Blocks of random tokens, half of them from each source."""
    random = np.random.default_rng(0)
    writer = ShardWriter(folder, "train", shape.block, pad_token_id=0, max_bytes=1 << 26)
    for _ in range(_BLOCKS):
        documents = []
        for _ in range(shape.block // shape.document):
            ids_T = random.integers(10, 400, shape.document).astype(np.int32)
            document = Document(ids_T, np.arange(shape.document) >= shape.document // 4)
            documents.append(dataclasses.replace(document, example_id=example_id(document)))
        writer.add(documents)
    split = writer.close()
    for number in range(len(_SOURCES)):
        split.sources.add(source=number, row_count=_BLOCKS // len(_SOURCES))
    artifacts.write(
        folder,
        artifact_pb2.Artifact(
            job="recording",
            stage="prepare",
            fingerprints=artifact_pb2.Fingerprints(tokenizer=tokenization.fingerprint(tokenization.load(model))),
            data=artifact_pb2.DataArtifact(
                block_size=shape.block,
                vocabulary_size=_VOCABULARY,
                splits=[split],
                sources=[artifact_pb2.DataArtifact.SourceStatistics(name=name) for name in _SOURCES],
            ),
        ),
    )
