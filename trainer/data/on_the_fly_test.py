"""Blocks packed on the fly hold what the documents hold, and all ranks see the same global batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from finecut.dataprep.document_shards import DocumentReader, DocumentWriter
from finecut.dataprep.documents import Document, Pair
from finecut.proto import artifact_pb2
from finecut.proto.run import artifacts
from finecut.trainer.data.batches import Batches
from finecut.trainer.data.on_the_fly import OnTheFlyReader
from finecut.trainer.data.order import PlannedOrder
from finecut.trainer.data.source_rows import Sources
from finecut.trainer.parallel.process_group import Devices

NUM_DOCUMENTS = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Document n is 1000 + n over and over; its last token is trained."""
    folder = tmp_path_factory.mktemp("documents")
    random = np.random.default_rng(0)
    writer = DocumentWriter(folder, "train", block_size=32, max_bytes=1 << 20)
    for n in range(NUM_DOCUMENTS):
        length = int(random.integers(2, 33))
        writer.add(Document(np.full(length, 1000 + n, np.int32), np.arange(length) == length - 1))
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.packed, manifest.data.window_documents = 32, False, 16
    manifest.data.pad_token_id = 7
    manifest.data.splits.append(writer.close())
    artifacts.write(folder, manifest)
    return folder


def test_an_epoch_holds_each_document_once_whole_and_apart(folder: Path) -> None:
    documents = DocumentReader(folder, "train")
    reader = OnTheFlyReader(documents, seeds=[3])
    blocks = reader.read(range(len(reader)))
    found = {}
    for n in range(len(reader)):
        for number in range(blocks.document_id_NL[n].max() + 1):
            inside_L = blocks.document_id_NL[n] == number
            (token,) = set(blocks.input_ids_NL[n][inside_L].tolist())
            assert blocks.position_id_NL[n][inside_L].tolist() == list(range(inside_L.sum()))
            assert np.flatnonzero(blocks.loss_mask_NL[n][inside_L]).tolist() == [inside_L.sum() - 1]
            assert token not in found
            found[token] = int(inside_L.sum())
    assert found == {1000 + n: int(length) for n, length in enumerate(documents.lengths_N)}
    padding_NL = blocks.document_id_NL < 0
    assert (blocks.input_ids_NL[padding_NL] == 7).all()
    assert not blocks.loss_mask_NL[padding_NL].any() and not blocks.position_id_NL[padding_NL].any()


def test_attention_work_is_the_sum_of_squared_document_lengths(folder: Path) -> None:
    reader = OnTheFlyReader(DocumentReader(folder, "train"), seeds=[3])
    blocks = reader.read([4, 1])
    expected = [(np.bincount(ids[ids >= 0]) ** 2).sum() for ids in blocks.document_id_NL]
    assert reader.attention_work([4, 1]).tolist() == expected


def global_batches(folder: Path, world_size: int) -> list[list[list[int]]]:
    """Blocks of each step of two epochs, over all ranks, in an order of their own."""
    steps: list[list[list[int]]] = []
    for rank in range(world_size):
        devices = Devices(rank, world_size, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]
        reader = OnTheFlyReader(DocumentReader(folder, "train"), seeds=[3])
        (plan,) = reader.plans
        order = PlannedOrder(len(reader), global_blocks=4, seed=3, end=plan.blocks_in(2), plan=plan)
        last = order.total_steps(max_steps=None)
        sources = Sources(("all",), np.zeros(NUM_DOCUMENTS, np.int32), np.ones(NUM_DOCUMENTS, np.int64))
        batches = Batches(reader, order, sources, 1, devices, last)
        steps = steps or [[] for _ in range(last)]
        for step in range(1, last + 1):
            for batch in batches.step(step).micro_batches:
                if batch.tokens.useful:  # a rank without a block runs one that counts for nothing
                    steps[step - 1] += batch.input_ids_BL.tolist()
        batches.close()
    return [sorted(blocks) for blocks in steps]


def test_the_number_of_ranks_does_not_change_the_global_batches(folder: Path) -> None:
    alone = global_batches(folder, 1)
    assert [len(blocks) for blocks in alone[:-1]] == [4] * (len(alone) - 1)
    assert global_batches(folder, 2) == alone
    assert global_batches(folder, 4) == alone


def test_pairs_stay_together_and_cost_what_their_documents_cost(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    writer = DocumentWriter(tmp_path, "train", block_size=32, max_bytes=1 << 20, pairs=True)
    for n in range(30):
        chosen, rejected = (int(random.integers(2, 17)) for _ in range(2))
        length = chosen + rejected
        mask_T = np.isin(np.arange(length), [chosen - 1, length - 1])
        ids_T = np.full(length, n, np.int32)
        writer.add(Document(ids_T, mask_T, example_id=n + 1, pair=Pair(chosen, margin=n / 2)))
    manifest = artifact_pb2.Artifact()
    manifest.data.block_size, manifest.data.packed, manifest.data.window_documents = 32, False, 16
    manifest.data.splits.append(writer.close())
    artifacts.write(tmp_path, manifest)
    reader = OnTheFlyReader(DocumentReader(tmp_path, "train"), seeds=[3])
    blocks = reader.read(range(len(reader)))
    found = []
    for n, work in enumerate(reader.attention_work(range(len(reader))).tolist()):
        ids_L = blocks.document_id_NL[n]
        assert work == (np.bincount(ids_L[ids_L >= 0]) ** 2).sum()
        for k in range((ids_L.max() + 1) // 2):
            (token,) = set(blocks.input_ids_NL[n][(ids_L == 2 * k) | (ids_L == 2 * k + 1)].tolist())
            assert blocks.example_id_ND[n, 2 * k : 2 * k + 2].tolist() == [token + 1] * 2
            assert blocks.margin_NP[n, k] == token / 2
            found.append(token)
    assert sorted(found) == list(range(30))
