"""Rows hold whole answers; what is fetched for a target comes back to its place; ranks share all rows alike."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.proto.config import UserError
from finecut.trainer.data.batches import IGNORED
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rl import rows
from finecut.trainer.rl.testing import make_sample

SAMPLES = [make_sample(3, 5), make_sample(2, 7, inserted=(2, 3)), make_sample(4, 1), make_sample(6, 6)]
LONGEST = 7


def devices(rank: int = 0, size: int = 1) -> Devices:
    return Devices(rank, size, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]  # no collective is called


@settings(deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=40))
def test_every_sequence_lies_in_one_row_that_has_room(lengths: list[int]) -> None:
    packed = rows.pack(lengths, 20)
    assert sorted(n for row in packed for n in row) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in row) <= 20 for row in packed)


def test_a_sequence_that_is_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UserError, match="21 tokens, more than the 20 of a row"):
        rows.pack([3, 21], 20)


def test_padding_counts_by_its_place_so_that_an_answer_may_end_with_the_padding_token() -> None:
    """As where a tokenizer's padding is its end of text."""
    padding = 0
    sample = dataclasses.replace(SAMPLES[0], answer_ids=(*SAMPLES[0].answer_ids[:-1], padding))
    [batch] = rows.micro_batches([sample], [0], 16, 1, devices())
    trained = batch.targets_BL[0] != IGNORED
    assert batch.input_ids_BL[0, len(sample.prompt_ids) + 4 :].tolist() == [padding] * 9
    assert trained.sum() == 5 and batch.targets_BL[0, len(sample.prompt_ids) + 3] == padding
    assert (batch.document_ids_BL[0] == -1).sum() == 8


def test_targets_are_the_sampled_tokens_and_their_values_come_back() -> None:
    [batch] = rows.micro_batches(SAMPLES, range(4), 40, 1, devices())
    assert batch.num_answers == 4 and batch.tokens.trained == 5 + 5 + 1 + 6 and batch.tokens.useful == 34
    ids, targets, place = batch.input_ids_BL[0], batch.targets_BL[0], batch.place_BL[0]
    for at in (targets != IGNORED).nonzero().flatten().tolist():
        assert targets[at] == ids[at + 1]
        sample = SAMPLES[int(place[at]) // LONGEST]
        token = int(place[at]) % LONGEST
        assert sample.answer_ids[token] == targets[at] and sample.loss_mask[token]
    values_NT = torch.arange(4.0 * LONGEST).view(4, LONGEST)
    found_NT = torch.full((4, LONGEST), -1.0)
    batch.put_back(batch.fetch(values_NT), found_NT)
    mask_NT = torch.tensor([list(s.loss_mask) + [False] * (LONGEST - len(s.loss_mask)) for s in SAMPLES])
    assert torch.equal(found_NT, values_NT.where(mask_NT, -1.0))


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_take_each_answer_once_in_equally_many_micro_batches(size: int) -> None:
    of_ranks = [rows.micro_batches(SAMPLES, range(4), 13, 1, devices(rank, size)) for rank in range(size)]
    assert len({len(batches) for batches in of_ranks}) == 1
    places = torch.cat([batch.place_BL.flatten() for batches in of_ranks for batch in batches])
    assert len(places[places >= 0].unique()) == len(places[places >= 0]) == 17
    assert sum(batch.num_answers for batches in of_ranks for batch in batches) == 4
    # A rank without a row of its own still has tokens to compute, none of which counts.
    assert all((batch.document_ids_BL >= 0).any() for batches in of_ranks for batch in batches)


def test_a_part_of_the_samples_keeps_the_places_of_all() -> None:
    [batch] = rows.micro_batches(SAMPLES, [1, 3], 40, 1, devices())
    assert {int(p) // LONGEST for p in batch.place_BL.flatten() if p >= 0} == {1, 3} and batch.num_answers == 2
    assert dataclasses.replace(batch).to(torch.device("cpu")).place_BL.shape == (1, 40)
