"""Starts the rows of new tokens near the mean of the old ones.

With the mean a new token is about as likely as an average one, and the logits of the old ones hardly change (Hewitt,
2021); rows that were all equal would never part but by their own examples, so each has a little noise.

Shapes: N new rows, D columns of the vocabulary that this rank holds.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from finecut.trainer.models.architecture import NewRows
from finecut.trainer.models.families.stored import Stored
from finecut.trainer.models.safetensors_read import TensorFolder
from finecut.trainer.models.sharding import Box

NOISE = 0.1  # standard deviation of the noise, relative to that of the old rows, column by column
_ROWS_READ = 4096  # of the old rows at a time
_ROWS_DRAWN = 1024  # rows of noise that share a generator


def set_new_rows(
    value_ND: Tensor, name: str, box: Box, new: NewRows, stored: Stored, tensors: TensorFolder, seed: int
) -> None:
    """Writes the new rows that lie in `box` into its value. The same rows whatever the number of ranks.

    Args:
      value_ND: the box of the parameter of that name, changed in place.
    """
    first, last = max(new.begin, box.offset[0]), min(new.end, box.offset[0] + box.size[0])
    if first >= last:
        return
    mean_D, deviation_D = _mean_and_deviation(box, new.begin, stored, tensors)
    columns = slice(box.offset[1], box.offset[1] + box.size[1])
    width = stored.shape[1]
    for part in range(first // _ROWS_DRAWN, -(-last // _ROWS_DRAWN)):
        begin = part * _ROWS_DRAWN
        noise_ND = torch.randn(_ROWS_DRAWN, width, generator=generator_for(f"{name}/{part}", seed))[:, columns]
        rows = slice(max(first, begin), min(last, begin + _ROWS_DRAWN))
        drawn_ND = noise_ND[rows.start - begin : rows.stop - begin]
        value_ND[rows.start - box.offset[0] : rows.stop - box.offset[0]] = mean_D + NOISE * deviation_D * drawn_ND


def _mean_and_deviation(box: Box, num_rows: int, stored: Stored, tensors: TensorFolder) -> tuple[Tensor, Tensor]:
    """Of the first `num_rows` rows, over this rank's columns; they are read a few at a time."""
    total_D = square_D = torch.zeros(box.size[1], dtype=torch.float64)
    for begin in range(0, num_rows, _ROWS_READ):
        count = min(_ROWS_READ, num_rows - begin)
        rows_ND = stored.read(tensors, (begin, box.offset[1]), (count, box.size[1])).double()
        total_D, square_D = total_D + rows_ND.sum(0), square_D + rows_ND.square().sum(0)
    mean_D = total_D / num_rows
    deviation_D = (square_D / num_rows - mean_D.square()).clamp(min=0).sqrt()
    return mean_D.float(), deviation_D.float()


def generator_for(name: str, seed: int) -> torch.Generator:
    """A generator of its own for each parameter, so that neither the order nor the number of ranks matters."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
