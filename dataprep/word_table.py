"""Words and their token ids, in flat arrays, so that a text's ids are gathered and not joined one by one."""

from collections.abc import Callable, Sequence
from itertools import repeat

import numpy as np

# About 60 MB of words; real text has a few hundred thousand. Longer ones hardly come back.
MAX_KNOWN = 200_000
MAX_LENGTH = 64
# Words gathered at a time: index arrays of some megabytes.
_SLICE = 1 << 16

Ask = Callable[[Sequence[str]], Sequence[Sequence[int]]]


class WordTable:
    """Asks for the ids of each word once."""

    def __init__(self, ask: Ask):
        self._ask = ask
        self._clear()

    def __len__(self) -> int:
        return len(self._numbers)

    def __contains__(self, word: str) -> bool:
        return word in self._numbers

    def ids_of(self, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all words in one line, int32, and where each word's begin in it, with the end of the last."""
        numbers = self._look_up(words)
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            unknown = {words[index] for index in missing.tolist()}
            if len(self) + len(unknown) > MAX_KNOWN:
                self._clear()
                unknown, missing = set(words), np.arange(len(words))
            # Sorted, so that a run is like any other; long ones last, because they are known for this call only.
            new = sorted(unknown, key=lambda word: (len(word) > MAX_LENGTH, word))
            self._add(new)
            numbers[missing] = [self._numbers[words[index]] for index in missing.tolist()]
            found = self._gather(numbers)
            self._forget([word for word in new if len(word) > MAX_LENGTH])
            return found
        return self._gather(numbers)

    def _clear(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ends: np.ndarray = np.zeros(1, np.int64)  # of word n: ids from _ends[n] to _ends[n + 1]
        self._ids: np.ndarray = np.empty(0, np.int32)

    def _look_up(self, words: Sequence[str]) -> np.ndarray:
        return np.fromiter(map(self._numbers.get, words, repeat(-1)), np.int64, len(words))

    def _add(self, words: Sequence[str]) -> None:
        ids = self._ask(words)
        self._numbers.update(zip(words, range(len(self), len(self) + len(words)), strict=True))
        ends = np.cumsum([len(word_ids) for word_ids in ids]) + self._ends[-1]
        self._ends = np.concatenate([self._ends, ends])
        self._ids = np.concatenate([self._ids, *(np.array(word_ids, np.int32) for word_ids in ids)])

    def _forget(self, words: Sequence[str]) -> None:
        """Takes back the words that were added last."""
        for word in words:
            del self._numbers[word]
        self._ends = self._ends[: len(self) + 1]
        self._ids = self._ids[: self._ends[-1]]

    def _gather(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        starts = self._ends[numbers]
        lengths = self._ends[numbers + 1] - starts
        borders = np.concatenate([[0], np.cumsum(lengths)])
        ids: np.ndarray = np.empty(borders[-1], np.int32)
        for first in range(0, len(numbers), _SLICE):
            part = slice(first, first + _SLICE)
            start, end = borders[first], borders[min(first + _SLICE, len(numbers))]
            # The place of an id in the table is that in the line, moved by as much for all ids of a word.
            places: np.ndarray = np.repeat(starts[part] - borders[:-1][part], lengths[part])
            places += np.arange(start, end)
            np.take(self._ids, places, out=ids[start:end])
        return ids, borders
