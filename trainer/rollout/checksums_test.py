import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rollout.checksums import combine, differing, digest, tensor_checksum


def parts_of(tensor, dimension, count):
    found, start = [], 0
    for part in tensor.chunk(count, dimension):
        offset = [0] * tensor.ndim
        offset[dimension] = start
        found.append({"t": tensor_checksum(part, tuple(tensor.shape), tuple(offset))})
        start += part.shape[dimension]
    return combine(found)["t"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(48,), (512,), (6, 40), (8, 1024), (3, 4, 64)])
def test_parts_add_up_to_the_whole(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    whole = tensor_checksum(tensor)
    for dimension in range(len(shape)):
        for count in (1, 2, 4):
            assert parts_of(tensor, dimension, count) == whole


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(1, 9), st.integers(1, 300), st.data())
def test_a_changed_or_moved_element_changes_the_checksum(rows, columns, data):
    tensor = torch.arange(rows * columns, dtype=torch.float32).view(rows, columns)
    before = tensor_checksum(tensor)
    row, column = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    changed = tensor.clone()
    changed[row, column] += 0.5
    assert tensor_checksum(changed) != before
    assert tensor_checksum(changed) == tensor_checksum(changed.clone())
    if rows * columns > 1:
        assert tensor_checksum(tensor.flatten().roll(1).view(rows, columns)) != before


def test_equal_values_in_another_order_are_not_equal():
    tensor = torch.randn(64, 1024)
    assert tensor_checksum(tensor) != tensor_checksum(tensor.flip(0))
    assert tensor_checksum(torch.zeros(8, 8)) == tensor_checksum(torch.zeros(4, 4)) == 0


def test_a_part_within_a_word_is_an_error():
    with pytest.raises(ValueError, match="begins within a word"):
        tensor_checksum(torch.zeros(1, 3), (1, 1024), (0, 3))


def test_differing_names_what_one_side_lacks():
    ours, theirs = {"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 3}
    assert differing(ours, theirs) == ["b", "c", "d"]
    assert digest(ours) != digest(theirs) and digest(ours) == digest(dict(reversed(ours.items())))
