"""Which documents make which block when packing happens on the fly: a pure function of lengths, seed and position.

    epoch e:  all documents, shuffled by (seed, e) -> windows of equal size -> best fit decreasing in each -> blocks
    stream:   the blocks of epoch 0, window by window, then those of epoch 1, ...

Every rank computes the same plan from the lengths alone. Windows are packed one at a time, as the stream is followed;
only the last few are kept, and how many blocks each one of those before it had.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right

import numpy as np

from finecut.dataprep.packing import best_fit_decreasing

# A step touches two windows of two epochs at most, unless it is larger than a window.
_KEPT_WINDOWS = 4
_KEPT_EPOCHS = 2


class PackingPlan:
    """The endless stream of blocks over documents of these lengths, by position from 0.

    `window_documents` bounds what is packed together; `documents_M` are those that take part (None: all). Not safe for
    use by several threads at once.
    """

    def __init__(
        self,
        lengths_N: np.ndarray,
        block_size: int,
        window_documents: int,
        seed: int,
        documents_M: np.ndarray | None = None,
    ) -> None:
        self._lengths_N = lengths_N
        self._documents_M = np.arange(len(lengths_N)) if documents_M is None else documents_M
        self._block_size = block_size
        self._seed = seed
        self._windows_an_epoch = math.ceil(len(self._documents_M) / window_documents)
        self._ends: list[int] = []  # of the windows from the first of epoch 0 on, in blocks
        self._shuffled = functools.lru_cache(maxsize=_KEPT_EPOCHS)(self._shuffle)
        self._window = functools.lru_cache(maxsize=_KEPT_WINDOWS)(self._pack)

    def blocks_in(self, epochs: float) -> int:
        """Blocks in the first `epochs` epochs, rounded. Packs all their windows, two seconds a million documents."""
        whole = math.floor(epochs)
        if whole == epochs:
            return self._end_of_epoch(whole)
        start, end = self._end_of_epoch(whole), self._end_of_epoch(whole + 1)
        return start + round((epochs - whole) * (end - start))

    def block(self, position: int) -> np.ndarray:
        """The documents of the block at this position of the stream, int64."""
        number, offset = self._find(position)
        return self._window(number)[offset]

    def times_taken(self, position: int) -> np.ndarray:
        """How often the blocks before this position hold each document, int64 [N]."""
        number, offset = self._find(position)
        epoch, window = divmod(number, self._windows_an_epoch)
        times: np.ndarray = np.zeros(len(self._lengths_N), np.int64)
        times[self._documents_M] = epoch
        times[self._shuffled(epoch)[: self._start(window)]] += 1
        for block in self._window(number)[:offset]:
            times[block] += 1
        return times

    def _find(self, position: int) -> tuple[int, int]:
        """The window that holds the block at this position, and the block's place in it."""
        while not self._ends or self._ends[-1] <= position:
            self._extend()
        number = bisect_right(self._ends, position)
        return number, position - (self._ends[number - 1] if number else 0)

    def _end_of_epoch(self, num_epochs: int) -> int:
        num_windows = num_epochs * self._windows_an_epoch
        while len(self._ends) < num_windows:
            self._extend()
        return self._ends[num_windows - 1] if num_windows else 0

    def _extend(self) -> None:
        blocks = self._window(len(self._ends))
        self._ends.append((self._ends[-1] if self._ends else 0) + len(blocks))

    def _shuffle(self, epoch: int) -> np.ndarray:
        return self._documents_M[np.random.default_rng([self._seed, epoch]).permutation(len(self._documents_M))]

    def _start(self, window: int) -> int:
        """Documents of an epoch before this window; windows are of equal size, to within one document."""
        return len(self._documents_M) * window // self._windows_an_epoch

    def _pack(self, number: int) -> list[np.ndarray]:
        epoch, window = divmod(number, self._windows_an_epoch)
        documents_W = self._shuffled(epoch)[self._start(window) : self._start(window + 1)]
        lengths = self._lengths_N[documents_W].tolist()
        groups = best_fit_decreasing(lengths, self._block_size, [self._seed, epoch, window])
        return [documents_W[group] for group in groups]
