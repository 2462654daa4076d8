"""Documents into blocks: best fit decreasing over a window of documents."""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from finecut.dataprep.config import PackingConfig
from finecut.dataprep.documents import Document


def best_fit_decreasing(lengths: Sequence[int], capacity: int, seed: int | Sequence[int]) -> list[list[int]]:
    """Indices of documents, grouped into blocks whose lengths sum to at most `capacity`.

    The longest document goes first, each into the block it fills best (Johnson, 1973: at most 11/9 of the optimal
    number of blocks). The seed decides among documents of equal length and the order of the blocks, nothing else.
    O(n log n): at most `capacity` different amounts of room exist, and they are kept sorted.
    """
    random = np.random.default_rng(seed)
    shuffled_N = random.permutation(len(lengths))
    order_N = shuffled_N[np.argsort(-np.asarray(lengths, dtype=np.int64)[shuffled_N], kind="stable")]
    blocks: list[list[int]] = []
    blocks_with_room: dict[int, list[int]] = defaultdict(list)
    rooms: list[int] = []  # the keys of blocks_with_room that have blocks, ascending
    for index in map(int, order_N):
        length = lengths[index]
        assert 0 < length <= capacity, f"document {index} has {length} tokens, a block {capacity}"
        position = bisect_left(rooms, length)
        if position < len(rooms):
            room = rooms[position]
            block = blocks_with_room[room].pop()
            if not blocks_with_room[room]:
                rooms.pop(position)
        else:
            room, block = capacity, len(blocks)
            blocks.append([])
        blocks[block].append(index)
        left = room - length
        if left:
            if not blocks_with_room[left]:
                insort(rooms, left)
            blocks_with_room[left].append(block)
    return [blocks[number] for number in random.permutation(len(blocks))]


class Packer:
    """Collects documents and gives them back as blocks, a window at a time. Memory is bounded by the window."""

    def __init__(self, config: PackingConfig, seed: int):
        self._config = config
        self._seed = seed
        self._num_windows = 0
        self._window: list[Document] = []

    def add(self, document: Document) -> Iterator[list[Document]]:
        """Blocks that are ready now: none, or those of a full window."""
        self._window.append(document)
        if len(self._window) >= self._config.window_documents:
            yield from self.flush()

    def flush(self) -> Iterator[list[Document]]:
        """Blocks of the documents that are still held."""
        window, self._window = self._window, []
        seed = (self._seed, self._num_windows)
        self._num_windows += 1
        if self._config.one_document_a_block:
            order = np.random.default_rng(seed).permutation(len(window))
            yield from ([window[index]] for index in order)
            return
        for block in best_fit_decreasing([len(document) for document in window], self._config.block_size, seed):
            yield [window[index] for index in block]
