"""Mixes: shares, amounts, epochs and resuming, for blocks packed beforehand and on the fly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.proto.config import UserError
from finecut.trainer.data.balance import PADDING, assign
from finecut.trainer.data.mix import Mix, Part
from finecut.trainer.data.order import MixedOrder
from finecut.trainer.data.plan import PackingPlan
from finecut.trainer.data.streams import BlockStream, PlanStream, Stream, seed_of_source

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def parts_of(sizes: list[int], **wanted: list[float]) -> list[Part]:
    """Sources of these many blocks, of 100 tokens each."""
    names = [f"s{number}" for number in range(len(sizes))]
    return [
        Part(name, size, 100 * size, **{field: values[number] for field, values in wanted.items()})
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]


def order_of(mix: Mix, global_blocks: int = 4, seed: int = 0, end: int | None = None) -> MixedOrder:
    """Over blocks that are numbered source after source."""
    sizes = [part.num_blocks for part in mix.parts]
    starts = np.cumsum([0, *sizes])
    streams: list[Stream] = [
        BlockStream(np.arange(start, start + size), int(starts[-1]), seed_of_source(seed, number))
        for number, (start, size) in enumerate(zip(starts, sizes, strict=False))
    ]
    return MixedOrder(mix.num_blocks, global_blocks, seed, end, mix, tuple(streams))


def blocks_of(order: MixedOrder, first: int, last: int) -> list[int]:
    return [int(index) for step in range(first, last + 1) for index in order.batch(step)]


def sources_of(order: MixedOrder, blocks: list[int]) -> np.ndarray:
    ends = np.cumsum([part.num_blocks for part in order.mix.parts])
    return np.searchsorted(ends, np.array(blocks), side="right")


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=5),
    seed=st.integers(0, 2**63 - 1),
    data=st.data(),
)
def test_weights_are_shares_of_every_prefix(sizes: list[int], seed: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 100), min_size=len(sizes), max_size=len(sizes)))
    order = order_of(Mix(parts_of(sizes, weight=weights)), seed=seed)
    found = sources_of(order, blocks_of(order, 1, 60))
    assert order.num_blocks == sum(sizes)
    for source, weight in enumerate(weights):
        exact = np.arange(1, len(found) + 1) * weight / sum(weights)
        # One block, and the resolution of a share.
        assert (np.abs(np.cumsum(found == source) - exact) < 1 + len(found) * len(sizes) / 65_536).all()


def test_weights_are_of_tokens_although_blocks_are_not_equally_full() -> None:
    mix = Mix([Part("full", 50, 50 * 100, weight=1), Part("half empty", 50, 50 * 50, weight=1)])
    full, empty = mix.taken(60_000).tolist()
    assert full * 100 == pytest.approx(empty * 50, rel=1e-3)


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 2**63 - 1), global_blocks=st.integers(1, 9), data=st.data())
def test_an_epoch_has_each_source_as_often_as_asked(
    sizes: list[int], seed: int, global_blocks: int, data: st.DataObject
) -> None:
    epochs = data.draw(st.lists(st.integers(1, 3), min_size=len(sizes), max_size=len(sizes)))
    mix = Mix(parts_of(sizes, epochs=[float(number) for number in epochs]))
    order = order_of(mix, global_blocks, seed, end=2 * mix.num_blocks)
    blocks = blocks_of(order, 1, order.total_steps(None))
    expected = np.repeat(epochs, sizes).tolist()
    assert mix.num_blocks == sum(expected)
    assert np.bincount(blocks[: mix.num_blocks]).tolist() == expected
    assert np.bincount(blocks[mix.num_blocks :]).tolist() == expected


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 2**63 - 1), data=st.data())
def test_each_pass_over_a_source_has_each_block_once(sizes: list[int], seed: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.1, 10), min_size=len(sizes), max_size=len(sizes)))
    order = order_of(Mix(parts_of(sizes, weight=weights)), seed=seed)
    blocks = np.array(blocks_of(order, 1, 40))
    sources = sources_of(order, blocks.tolist())
    for source, size in enumerate(sizes):
        stream = blocks[sources == source]
        for start in range(0, len(stream) - size + 1, size):
            assert len(set(stream[start : start + size])) == size


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=SIZES, step=st.integers(1, 200), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_a_run_that_resumes_anywhere_sees_what_it_would_have_seen(
    sizes: list[int], step: int, seed: int, data: st.DataObject
) -> None:
    epochs = data.draw(st.lists(st.floats(0.2, 3), min_size=len(sizes), max_size=len(sizes)))
    uninterrupted = order_of(Mix(parts_of(sizes, epochs=epochs)), seed=seed)
    blocks = blocks_of(uninterrupted, 1, step)
    resumed = order_of(Mix(parts_of(sizes, epochs=epochs)), seed=seed)
    assert resumed.batch(step).tolist() == blocks[-4:]
    assert resumed.times_taken(step).tolist() == np.bincount(blocks, minlength=sum(sizes)).tolist()


@settings(deadline=None, derandomize=True, max_examples=40)
@given(sizes=SIZES, world_size=st.integers(1, 5), micro_blocks=st.integers(1, 3), step=st.integers(1, 50))
def test_any_number_of_ranks_takes_the_same_blocks(
    sizes: list[int], world_size: int, micro_blocks: int, step: int
) -> None:
    batch = order_of(Mix(parts_of(sizes, epochs=[1.5] * len(sizes))), global_blocks=12).batch(step)
    assignment, _ = assign(batch, batch**2 + 1, world_size, micro_blocks)
    assert sorted(block for block in assignment.ravel().tolist() if block != PADDING) == sorted(batch.tolist())


def test_a_budget_is_tokens_of_an_epoch_and_the_next_epoch_goes_on() -> None:
    parts = [Part("large", 100, 10_000, token_budget=2_500), Part("small", 5, 500, token_budget=1_000)]
    mix = Mix(parts)
    assert mix.num_blocks == 25 + 10
    assert mix.epochs(4 * 35) == [1.0, 8.0]
    order = order_of(mix, global_blocks=35)
    large = [block for block in blocks_of(order, 1, 4) if block < 100]
    assert sorted(large) == list(range(100))  # four quarters


def test_a_part_of_an_epoch_takes_another_part_in_the_next() -> None:
    order = order_of(Mix([Part("half", 10, 1000, epochs=0.5), Part("whole", 4, 400)]), global_blocks=9)
    first, second = (set(order.batch(step).tolist()) for step in (1, 2))
    assert {10, 11, 12, 13} <= first & second
    assert sorted((first | second) - {10, 11, 12, 13}) == list(range(10))


def test_sources_of_equal_size_are_shuffled_apart() -> None:
    order = order_of(Mix(parts_of([20, 20])), global_blocks=40)
    batch = order.batch(1)
    assert (batch[batch >= 20] - 20).tolist() != batch[batch < 20].tolist()


def test_a_source_without_blocks_takes_no_turn() -> None:
    mix = Mix([Part("a", 3, 300, epochs=2), Part("nothing", 0, 0), Part("b", 2, 200)])
    assert mix.taken(mix.num_blocks).tolist() == [6, 0, 2]


def test_a_weight_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="'empty' has nothing to train on"):
        Mix([Part("a", 3, 300, weight=1), Part("empty", 0, 0, weight=1)])
    with pytest.raises(UserError, match="'b' has no weight, but another source has"):
        Mix([Part("a", 3, 300, weight=1), Part("b", 3, 300)])


def planned_order(lengths: np.ndarray, groups: list[np.ndarray], mix: Mix | None = None) -> MixedOrder:
    plans = [PackingPlan(lengths, 50, 16, seed, group) for seed, group in enumerate(groups)]
    streams = tuple(PlanStream(plan, number, len(plans)) for number, plan in enumerate(plans))
    parts = [
        Part(f"s{n}", plan.blocks_in(1), int(lengths[group].sum()), weight=1.0 + n)
        for n, (plan, group) in enumerate(zip(plans, groups, strict=True))
    ]
    mix = mix or Mix(parts)
    return MixedOrder(mix.num_blocks, 4, 0, None, mix, streams)


def test_on_the_fly_blocks_of_a_mix_come_from_one_source_and_are_counted() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 90)
    groups = [np.arange(0, 30), np.arange(30, 90)]
    order = planned_order(lengths, groups)
    rows = [order.rows(step) for step in range(1, 31)]
    again = planned_order(lengths, groups)
    assert again.rows(30).tolist() == rows[-1].tolist()
    assert again.batch(30).tolist() == order.batch(30).tolist()
    taken = np.bincount(np.concatenate(rows), minlength=90)
    assert order.times_taken(30).tolist() == taken.tolist() == again.times_taken(30).tolist()
    # Every pass over a source has each document once, so none is more than one pass ahead of another.
    for group in groups:
        assert taken[group].max() - taken[group].min() <= 1
    for position in range(120):
        stream, at = order.locate(position)
        block = set((stream.rows(at) >= 30).tolist())
        assert len(block) == 1
