"""The plan of on-the-fly packing: the guarantees of offline packing, at any position, whatever was asked before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.dataprep.config import PackingConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.packing import Packer
from finecut.trainer.data.plan import PackingPlan

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=80)


def plan_of(lengths: list[int] | np.ndarray, window: int = 16, seed: int = 0, block_size: int = 50) -> PackingPlan:
    return PackingPlan(np.array(lengths, np.int32), block_size, window, seed)


def blocks_of(plan: PackingPlan, start: int, end: int) -> list[list[int]]:
    return [plan.block(position).tolist() for position in range(start, end)]


@settings(deadline=None, derandomize=True)
@given(lengths=LENGTHS, window=st.integers(1, 100), seed=st.integers(0, 2**63 - 1))
def test_each_epoch_has_each_document_once_and_no_block_overflows(lengths: list[int], window: int, seed: int) -> None:
    plan = plan_of(lengths, window, seed)
    for epoch in range(3):
        blocks = blocks_of(plan, plan.blocks_in(epoch), plan.blocks_in(epoch + 1))
        assert sorted(index for block in blocks for index in block) == list(range(len(lengths)))
        assert all(0 < sum(lengths[index] for index in block) <= 50 for block in blocks)


@settings(deadline=None, derandomize=True)
@given(lengths=LENGTHS, seed=st.integers(0, 2**63 - 1), data=st.data())
def test_a_block_depends_on_its_position_and_not_on_what_was_asked_before(
    lengths: list[int], seed: int, data: st.DataObject
) -> None:
    followed = plan_of(lengths, seed=seed)
    blocks = blocks_of(followed, 0, 200)
    position = data.draw(st.integers(0, 199))
    assert plan_of(lengths, seed=seed).block(position).tolist() == blocks[position]
    assert followed.block(position).tolist() == blocks[position]  # long out of the cache
    times = followed.times_taken(position)
    assert times.tolist() == [sum(index in block for block in blocks[:position]) for index in range(len(lengths))]


def offline_blocks(lengths: list[int], window: int, seed: int) -> int:
    packer = Packer(PackingConfig(block_size=8192, window_documents=window), seed)
    documents = [Document(np.zeros(length, np.int32), np.zeros(length, bool)) for length in lengths]
    return sum(len(list(packer.add(document))) for document in documents) + len(list(packer.flush()))


@pytest.mark.parametrize("window", [2_500, 10_000])
def test_the_documents_of_a_window_need_as_many_blocks_as_offline(window: int) -> None:
    lengths = np.random.default_rng(0).lognormal(np.log(500), 1.0, 10_000).clip(1, 8192).astype(int)
    plan = plan_of(lengths, window, block_size=8192)
    blocks = [plan.block(position) for position in range(plan.blocks_in(1))]
    order = np.concatenate(blocks)  # cut at every `window` documents, this is what each window held
    assert len(blocks) == offline_blocks(lengths[order].tolist(), window, seed=5)
    assert lengths.sum() / (len(blocks) * 8192) > 0.995


def test_epochs_and_seeds_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 60)
    plan, other = plan_of(lengths), plan_of(lengths, seed=1)
    first = blocks_of(plan, 0, plan.blocks_in(1))
    assert first != blocks_of(plan, plan.blocks_in(1), plan.blocks_in(2))
    assert first != blocks_of(other, 0, other.blocks_in(1))


def test_blocks_in_a_part_of_an_epoch() -> None:
    plan = plan_of([50] * 10)
    assert [plan.blocks_in(epochs) for epochs in (0, 0.5, 1, 2.3)] == [0, 5, 10, 23]


def test_windows_of_an_epoch_are_of_equal_size() -> None:
    # 17 documents in windows of at most 16: a window of one document would hardly fill its block.
    assert plan_of([25] * 17, window=16).blocks_in(1) == 9
    assert plan_of([], window=16).blocks_in(1) == 0


def test_a_plan_over_some_documents_leaves_the_others_out() -> None:
    lengths = np.random.default_rng(0).integers(1, 30, 60)
    chosen = np.arange(1, 60, 3)
    plan = PackingPlan(lengths, 50, 16, 0, chosen)
    blocks = blocks_of(plan, plan.blocks_in(1), plan.blocks_in(2))
    assert sorted(index for block in blocks for index in block) == chosen.tolist()
    assert np.flatnonzero(plan.times_taken(plan.blocks_in(2))).tolist() == chosen.tolist()
