"""Tensors that are made ready while the ones before them are under way."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

from torch import Tensor


class Ahead:
    """Tensors of which some are gathered and converted before they are asked for, while engines load the last ones."""

    def __init__(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        self._tensors = iter(tensors)
        self._waiting: collections.deque[tuple[str, Tensor]] = collections.deque()

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while True:
            if not self._waiting and not self._take():
                return
            yield self._waiting.popleft()

    def gather(self, num_bytes: int) -> None:
        """Has so many bytes ready, or the rest. Collective."""
        size = sum(tensor.nbytes for _, tensor in self._waiting)
        while size < num_bytes and self._take():
            size += self._waiting[-1][1].nbytes

    def _take(self) -> bool:
        found = next(self._tensors, None)
        if found is not None:
            self._waiting.append(found)
        return found is not None
