import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rollout import checksums
from finecut.trainer.rollout.checksums import Checksums, Part, combine, differing, digest, tensor_checksum


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


def by_definition(tensor, whole_shape, offset):
    """One Python integer at a time."""
    size = tensor.element_size()
    word = 8 if whole_shape[-1] * size % 512 == 0 else size
    total = 0
    rows = tensor.reshape(-1, tensor.shape[-1]) if tensor.ndim > 1 else tensor[None]
    for number, row in enumerate(rows):
        data = row.contiguous().view(torch.uint8).numpy().tobytes()
        whole_row = number + (offset[0] if tensor.ndim > 1 else 0)
        begin = whole_row * whole_shape[-1] * size + offset[-1] * size
        for at in range(0, len(data), word):
            place = (begin + at) // word
            mixed = place * 0x9E3779B97F4A7C15 % 2**64
            for multiplier in (0xBF58476D1CE4E5B9, 0x94D049BB133111EB):
                shift = 30 if multiplier == 0xBF58476D1CE4E5B9 else 27
                signed = mixed - 2**64 if mixed >= 2**63 else mixed  # the shift keeps the sign
                mixed = (mixed ^ (signed >> shift)) * multiplier % 2**64
            total += int.from_bytes(data[at : at + word], "little", signed=word > 1) * (mixed | 1)
    return total % 2**64


@pytest.mark.parametrize("packed_bytes", [0, 5_000, 1 << 28])
def test_tensors_summed_together_have_the_checksums_that_they_have_alone(monkeypatch, packed_bytes):
    """Wide and narrow rows, runs of rows in fused matrices, columns, scalars of no element: in any grouping."""
    monkeypatch.setattr(checksums, "_PACKED_BYTES", packed_bytes)
    monkeypatch.setattr(checksums, "_packs", lambda tensor: True)
    generator = torch.Generator().manual_seed(0)
    wide, narrow, flat = (torch.randn(shape, generator=generator).bfloat16() for shape in ((6, 256), (9, 40), (768,)))
    parts = [
        Part.whole("wide", wide),
        Part.whole("narrow", narrow),
        Part("rows", wide[2:5], (2, 0), (6, 256)),
        Part.whole("flat", flat),
        Part("columns", wide[:, 64:128], (0, 64), (6, 256)),
        Part("narrow rows", narrow[4:], (4, 0), (9, 40)),
        Part("end", flat[512:], (512,), (768,)),
        Part("nothing", wide[:0], (0, 0), (6, 256)),
        Part("rows", wide[:2], (0, 0), (6, 256)),
        Part("rows", wide[5:], (5, 0), (6, 256)),
    ]
    together = Checksums()
    for part in parts:
        together.add(part)
    found = together.settle()
    assert found["rows"] == found["wide"] and found["nothing"] == 0
    for part in parts:
        if part.name not in ("rows", "nothing"):
            assert found[part.name] == by_definition(part.tensor, part.whole_shape, part.offset), part.name
            assert found[part.name] == tensor_checksum(part.tensor, part.whole_shape, part.offset)
