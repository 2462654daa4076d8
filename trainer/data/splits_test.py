"""Mixed data from the artifact to the ranks: the same batches for any number of them, and tokens told apart."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from finecut.dataprep.config import PackingConfig, PrepareConfig, SourceConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.output import Output
from finecut.dataprep.split import content_digest
from finecut.proto import artifact_pb2
from finecut.proto.run import artifacts
from finecut.trainer.data.batches import Batches
from finecut.trainer.data.order import BlockOrder, MixedOrder, PlannedOrder
from finecut.trainer.data.source_rows import SourceMeter
from finecut.trainer.data.splits import TrainSplit, open_held_out, open_train
from finecut.trainer.parallel.process_group import Devices

BLOCK_SIZE = 32
NUM_DOCUMENTS = {"ants": 60, "bees": 20}
WEIGHTS = {"ants": ("weight", 1.0), "bees": ("weight", 3.0)}
PACKINGS = pytest.mark.parametrize("on_the_fly", [False, True], ids=["offline", "on the fly"])


def write(folder: Path, on_the_fly: bool, mixing: dict[str, tuple[str, float]]) -> artifact_pb2.Artifact:
    """Documents of ants hold tokens from 100 on, those of bees from 200 on."""
    sources = tuple(SourceConfig(name, (), mixing=mixing.get(name)) for name in NUM_DOCUMENTS)
    packing = PackingConfig(BLOCK_SIZE, 16, on_the_fly=on_the_fly)
    config = PrepareConfig(sources, tokenizer="", packing=packing, evaluation_fraction=0.25)
    output = Output(config, folder, pad_token_id=0)
    random = np.random.default_rng(0)
    for number, (name, count) in enumerate(NUM_DOCUMENTS.items()):
        for _ in range(count):
            length = int(random.integers(4, 20))
            ids_T = random.integers(100 + 100 * number, 200 + 100 * number, length).astype(np.int32)
            document = Document(ids_T, np.arange(length) > 1)
            output.add(name, content_digest(document), document)
    manifest = artifact_pb2.Artifact()
    data = manifest.data
    data.block_size, data.packed = BLOCK_SIZE, not on_the_fly
    data.window_documents = 16 if on_the_fly else 0
    data.splits.extend(output.close())
    for name in NUM_DOCUMENTS:
        data.sources.add(name=name, **dict([mixing[name]] if name in mixing else []))
    return artifacts.write(folder, manifest)


def opened(folder: Path, manifest: artifact_pb2.Artifact, epochs: float = 2) -> TrainSplit:
    training: Any = SimpleNamespace(seed=3, epochs=epochs, global_blocks=4)
    return open_train(folder, manifest, training, verify=False)


def tokens_by_step(folder: Path, manifest: artifact_pb2.Artifact, world_size: int, first: int, last: int) -> list:
    """Of each step: the rows of tokens over all ranks, sorted, and the tokens of each source."""
    rows: list[list[list[int]]] = [[] for _ in range(first, last + 1)]
    tokens: list[list[int]] = []
    for rank in range(world_size):
        train = opened(folder, manifest)
        devices = Devices(rank, world_size, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
        batches = Batches(train.reader, train.order, train.sources, 1, devices, last)
        steps = [batches.step(step) for step in range(first, last + 1)]
        batches.close()
        tokens = [step.source_tokens_S.tolist() for step in steps]
        for found, step in zip(rows, steps, strict=True):
            found += [batch.input_ids_BL[0].tolist() for batch in step.micro_batches if batch.tokens.useful]
    return [(sorted(found), counted) for found, counted in zip(rows, tokens, strict=True)]


@PACKINGS
def test_a_mix_is_the_same_for_any_number_of_ranks_and_from_any_step(tmp_path: Path, on_the_fly: bool) -> None:
    manifest = write(tmp_path, on_the_fly, WEIGHTS)
    alone = tokens_by_step(tmp_path, manifest, 1, 1, 9)
    assert tokens_by_step(tmp_path, manifest, 3, 1, 9) == alone
    assert tokens_by_step(tmp_path, manifest, 2, 6, 9) == alone[5:]


@PACKINGS
def test_weights_are_shares_of_tokens(tmp_path: Path, on_the_fly: bool) -> None:
    steps = tokens_by_step(tmp_path, write(tmp_path, on_the_fly, WEIGHTS), 1, 1, 10)
    ants, bees = np.sum([tokens for _, tokens in steps], axis=0)
    assert bees / (ants + bees) == pytest.approx(0.75, abs=0.05)
    for rows, (num_ants, num_bees) in steps:
        ids = np.array(rows)
        assert [np.count_nonzero((ids >= 100) & (ids < 200)), np.count_nonzero(ids >= 200)] == [num_ants, num_bees]


@PACKINGS
def test_what_a_resumed_run_has_seen_follows_from_its_step(tmp_path: Path, on_the_fly: bool) -> None:
    manifest = write(tmp_path, on_the_fly, WEIGHTS)
    train = opened(tmp_path, manifest)
    meter = SourceMeter(train.sources, train.order, 0)
    for step, (_, tokens) in enumerate(tokens_by_step(tmp_path, manifest, 1, 1, 9), start=1):
        meter.add(np.array(tokens))
        resumed = SourceMeter(train.sources, opened(tmp_path, manifest).order, step)
        assert resumed.scalars() == meter.scalars()
    assert list(meter.scalars()) == ["tokens_seen/ants", "tokens_seen/bees", "epochs_seen/ants", "epochs_seen/bees"]


@PACKINGS
def test_without_a_mix_several_sources_are_one_stream_as_ever(tmp_path: Path, on_the_fly: bool) -> None:
    train = opened(tmp_path, write(tmp_path, on_the_fly, {}))
    assert isinstance(train.order, PlannedOrder if on_the_fly else BlockOrder)
    end = train.order.total_steps(None)
    assert SourceMeter(train.sources, train.order, end).scalars()["epochs_seen/bees"] == 2


@PACKINGS
def test_a_run_says_how_often_each_source_is_seen_and_warns_where_that_is_often(
    tmp_path: Path, on_the_fly: bool
) -> None:
    train = opened(tmp_path, write(tmp_path, on_the_fly, {"ants": ("weight", 1.0), "bees": ("weight", 99.0)}), 10)
    assert isinstance(train.order, MixedOrder)
    mix, warning = train.notes(train.order.total_steps(None))
    assert mix.startswith("mix of the run: ants ") and "bees " in mix
    assert warning.startswith("warning: bees is seen ") and "lower its share" in warning


@PACKINGS
def test_held_out_blocks_are_told_apart_by_source(tmp_path: Path, on_the_fly: bool) -> None:
    manifest = write(tmp_path, on_the_fly, WEIGHTS)
    reader, blocks = open_held_out(tmp_path, manifest, seed=3)
    assert list(blocks) == ["ants", "bees"]
    tokens = 0
    for name, first in (("ants", 100), ("bees", 200)):
        ids = reader.read(blocks[name].tolist()).input_ids_NL
        assert set((ids[ids > 0] // 100 * 100).tolist()) == {first}
        tokens += np.count_nonzero(ids)
    assert tokens == manifest.data.splits[1].token_count
