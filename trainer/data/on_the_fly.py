"""Blocks packed on the fly, behind the interface of blocks that were packed beforehand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finecut.dataprep.document_shards import DocumentReader
from finecut.dataprep.shards import Blocks
from finecut.trainer.data.plan import PackingPlan


class OnTheFlyReader:
    """Random access to the stream of a PackingPlan; an index is a position in it. Its length is that of epoch 0.

    A rank reads the tokens of the blocks it asks for and nothing else. Not safe for use by several threads at once.
    """

    def __init__(self, documents: DocumentReader, seed: int) -> None:
        data = documents.manifest.data
        self._documents = documents
        self.block_size: int = data.block_size
        self.plan = PackingPlan(documents.lengths_N, data.block_size, data.window_documents, seed)

    def __len__(self) -> int:
        """Number of blocks in the first epoch."""
        return self.plan.blocks_in(epochs=1)

    def read(self, indices: Sequence[int]) -> Blocks:
        """The blocks at these positions, in this order."""
        return self._documents.read_blocks([self.plan.block(int(index)) for index in indices])

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. No token is read."""
        return np.array(
            [self._documents.attention_work_N[self.plan.block(int(index))].sum() for index in indices], dtype=np.int64
        )
