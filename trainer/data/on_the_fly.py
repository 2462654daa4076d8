"""Blocks packed on the fly, behind the interface of blocks that were packed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.shards import Blocks
from finecut.trainer.data.plan import PackingPlan


class OnTheFlyReader:
    """Random access to the streams of PackingPlans, one for each group of documents that are packed together.

    With G groups, index G p + g is position p in the stream of plan g. The length is that of all first epochs. A rank
    reads the tokens of the blocks it asks for and nothing else. Not safe for use by several threads at once.
    """

    def __init__(
        self, documents: DocumentReader, seeds: Sequence[int], groups: Sequence[np.ndarray | None] = (None,)
    ) -> None:
        """`groups`: the documents of each (None: all), each with a seed."""
        data = documents.manifest.data
        self._documents = documents
        self.block_size: int = data.block_size
        self.plans = [
            PackingPlan(documents.lengths_N, data.block_size, data.window_documents, seed, group)
            for seed, group in zip(seeds, groups, strict=True)
        ]

    def __len__(self) -> int:
        """Number of blocks in the first epoch."""
        return sum(plan.blocks_in(epochs=1) for plan in self.plans)

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks of these indices, in this order."""
        return self._documents.read_blocks([self._block(int(index)) for index in indices])

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. No token is read."""
        work_N = self._documents.attention_work_N
        return np.array([work_N[self._block(int(index))].sum() for index in indices], dtype=np.int64)

    def rows(self, index: int) -> np.ndarray:
        """The documents of this block, in order."""
        return self._block(index)

    def _block(self, index: int) -> np.ndarray:
        position, number = divmod(index, len(self.plans))
        return self.plans[number].block(position)
