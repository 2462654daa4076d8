"""Counts for the report's plots, collected batch by batch in memory that depends on the block size alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from finecut.dataprep.lint.layout import Layout

# Bars of a plot: enough to see a shape, few enough to read.
NUM_BINS = 20


@dataclass
class SplitCounts:
    """How many documents and blocks there are of each size in tokens (the index), and of each trained share."""

    block_size: int
    documents_by_length: np.ndarray = field(init=False)
    blocks_by_tokens: np.ndarray = field(init=False)
    documents_by_trained_share: np.ndarray = field(init=False)  # NUM_BINS equal parts of 0 to 100%

    def __post_init__(self) -> None:
        self.documents_by_length = np.zeros(self.block_size + 1, np.int64)
        self.blocks_by_tokens = np.zeros(self.block_size + 1, np.int64)
        self.documents_by_trained_share = np.zeros(NUM_BINS, np.int64)

    def add(self, layout: Layout) -> None:
        self.documents_by_length += np.bincount(layout.lengths, minlength=self.block_size + 1)
        self.blocks_by_tokens += np.bincount(layout.block_tokens, minlength=self.block_size + 1)
        bins_D = np.minimum(layout.num_trained_D * NUM_BINS // layout.lengths, NUM_BINS - 1)
        self.documents_by_trained_share += np.bincount(bins_D, minlength=NUM_BINS)

    def length_at(self, share: float) -> int:
        """The length that this share of documents does not exceed: 0.5 gives the median."""
        reached = np.cumsum(self.documents_by_length)
        return int(np.searchsorted(reached, share * reached[-1]))


class Statistics:
    """The counts of each split."""

    def __init__(self, block_size: int):
        self._block_size = block_size
        self.splits: dict[str, SplitCounts] = {}

    def add(self, split: str, layout: Layout) -> None:
        self.splits.setdefault(split, SplitCounts(self._block_size)).add(layout)


@dataclass(frozen=True)
class Bar:
    """One bar of a histogram: what it covers, in words, and how many fall into it."""

    label: str
    count: int


@dataclass(frozen=True)
class Histogram:
    """A plot's bars from left to right, with what the ends and the middle of its axis are called."""

    title: str
    unit: str  # what is counted: "documents", "blocks"
    axis: str  # what the horizontal axis is
    ticks: tuple[str, str, str]
    bars: tuple[Bar, ...]


def histograms(counts: SplitCounts) -> list[Histogram]:
    """The plots of one split."""
    return [
        _of_lengths(counts.documents_by_length),
        _of_shares("Trained share of documents", "documents", "tokens trained", counts.documents_by_trained_share),
        _of_shares("Fill of blocks", "blocks", "tokens that are not padding", _fill(counts)),
    ]


def _of_lengths(documents_by_length: np.ndarray) -> Histogram:
    longest = int(np.flatnonzero(documents_by_length)[-1])
    width = max(1, -(-longest // NUM_BINS))
    edges = range(1, longest + 1, width)
    bars = [
        Bar(_range(start, min(start + width - 1, longest)), int(documents_by_length[start : start + width].sum()))
        for start in edges
    ]
    last = edges[-1] + width - 1
    return Histogram(
        "Length of documents", "documents", "tokens", ("1", f"{(1 + last) // 2:,}", f"{last:,}"), tuple(bars)
    )


def _of_shares(title: str, unit: str, axis: str, counts: Sequence[int] | np.ndarray) -> Histogram:
    step = 100 // NUM_BINS
    bars = tuple(Bar(f"{n * step}% to {(n + 1) * step}%", int(count)) for n, count in enumerate(counts))
    return Histogram(title, unit, axis, ("0%", "50%", "100%"), bars)


def _fill(counts: SplitCounts) -> np.ndarray:
    tokens = np.arange(counts.block_size + 1)
    bins = np.minimum(tokens * NUM_BINS // counts.block_size, NUM_BINS - 1)
    return np.bincount(bins, weights=counts.blocks_by_tokens, minlength=NUM_BINS).astype(np.int64)


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
