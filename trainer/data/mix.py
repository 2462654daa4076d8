"""How several sources share the places of a training run: a pure function of position, whatever the number of ranks.

    amounts:  a source has `epochs` passes or a budget of tokens in an epoch of training; their sum is the epoch
    weights:  a source has its share of all tokens from the first step to the last; an epoch is all sources together

Either gives each source a number of places in a period. Periods follow each other, and within one the sources take
turns evenly (interleave), so that shares hold in every prefix to within a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from finecut.proto.config import UserError
from finecut.trainer.data.interleave import interleave

# Places of a period where shares are given: the resolution of a share, worked out in a tenth of a second.
_PERIOD = 65_536


@dataclasses.dataclass(frozen=True)
class Part:
    """One source of the mix: what it has, and at most one of how much of it is wanted."""

    name: str
    num_blocks: int
    num_tokens: int
    weight: float | None = None
    epochs: float | None = None
    token_budget: int | None = None

    @property
    def blocks_an_epoch(self) -> int:
        """Blocks of it in an epoch of training, where no weights are given; at least one of a source that has any."""
        epochs = 1.0 if self.epochs is None else self.epochs
        if self.token_budget is not None and self.num_tokens:
            epochs = self.token_budget / self.num_tokens
        return max(1, round(epochs * self.num_blocks)) if self.num_blocks else 0


class Mix:
    """The source of each place of an endless stream of blocks, and its position in the stream of that source.

    Attributes:
      num_blocks: Blocks in an epoch of training.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        """Raises UserError where nothing of a source with a weight can be trained on."""
        self.parts = tuple(parts)
        if any(part.weight is not None for part in parts):
            self.num_blocks = sum(part.num_blocks for part in parts)
            counts = _share_out(parts)
        else:
            counts = [part.blocks_an_epoch for part in parts]
            self.num_blocks = sum(counts)
        self._sources_P = interleave(counts)
        self._counts_S: np.ndarray = np.array(counts, np.int64)
        # How many places of the same source come before each place of the period.
        self._before_P: np.ndarray = np.empty(len(self._sources_P), np.int64)
        for source, count in enumerate(counts):
            self._before_P[self._sources_P == source] = np.arange(count)

    def place(self, position: int) -> tuple[int, int]:
        """The source at this position, and the position in it."""
        period, offset = divmod(position, len(self._sources_P))
        source = int(self._sources_P[offset])
        return source, int(period * self._counts_S[source] + self._before_P[offset])

    def taken(self, position: int) -> np.ndarray:
        """Blocks of each source before this position, int64."""
        period, offset = divmod(position, len(self._sources_P))
        return period * self._counts_S + np.bincount(self._sources_P[:offset], minlength=len(self.parts))

    def epochs(self, position: int) -> list[float]:
        """How often each source is seen before this position; 0 of one that has nothing."""
        return [int(taken) / max(1, p.num_blocks) for taken, p in zip(self.taken(position), self.parts, strict=True)]


def _share_out(parts: Sequence[Part]) -> list[int]:
    """Places of each source in a period, by largest remainders; at least one.

    Weights are of tokens, and blocks of one source may be fuller than those of another.
    """
    for part in parts:
        if part.weight is None or not part.num_tokens:
            what = "has no weight, but another source has" if part.weight is None else "has nothing to train on"
            raise UserError(f"data_prep.sources: {part.name!r} {what}; set weight for all sources that have data")
    shares = np.array([(part.weight or 0) * part.num_blocks / part.num_tokens for part in parts])
    exact = shares / shares.sum() * _PERIOD
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: _PERIOD - counts.sum()]] += 1
    return np.maximum(counts, 1).tolist()
