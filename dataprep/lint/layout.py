"""Where documents and trained spans lie in a batch of blocks.

Shapes: N blocks of L tokens, D documents, S trained spans. Places are positions in the batch as one line of N * L
tokens; spans are [start, end).
"""

from dataclasses import dataclass

import numpy as np

from finecut.dataprep.shards import Blocks


@dataclass(frozen=True)
class Layout:
    """A batch of blocks as flat arrays, cut wherever a block ends or the document id changes."""

    block_size: int
    ids: np.ndarray  # [N * L]
    mask: np.ndarray  # [N * L]
    document_ids: np.ndarray  # [N * L]
    positions: np.ndarray  # [N * L]
    run_of: np.ndarray  # [N * L]; number of the run of equal document ids that a token is in, padding included
    document_start_D: np.ndarray
    document_end_D: np.ndarray
    num_trained_D: np.ndarray
    span_start_S: np.ndarray
    span_end_S: np.ndarray
    span_document_S: np.ndarray  # which of the D documents

    @classmethod
    def of(cls, blocks: Blocks) -> "Layout":
        block_size = blocks.input_ids_NL.shape[1]
        ids, mask = blocks.input_ids_NL.ravel(), blocks.loss_mask_NL.ravel()
        documents, positions = blocks.document_id_NL.ravel(), blocks.position_id_NL.ravel()
        is_start: np.ndarray = np.ones(ids.shape, bool)
        is_start[1:] = documents[1:] != documents[:-1]
        is_start[::block_size] = True
        run_of = np.cumsum(is_start) - 1
        starts = np.flatnonzero(is_start)
        ends = np.append(starts[1:], len(ids))
        is_document = documents[starts] >= 0
        document_start_D, document_end_D = starts[is_document], ends[is_document]
        trained_before = np.concatenate([[0], np.cumsum(mask)])
        span_start_S, span_end_S = _spans(mask & (documents >= 0), is_start)
        span_document_S: np.ndarray = np.searchsorted(document_start_D, span_start_S, side="right") - np.int64(1)
        return cls(
            block_size=block_size,
            ids=ids,
            mask=mask,
            document_ids=documents,
            positions=positions,
            run_of=run_of,
            document_start_D=document_start_D,
            document_end_D=document_end_D,
            num_trained_D=trained_before[document_end_D] - trained_before[document_start_D],
            span_start_S=span_start_S,
            span_end_S=span_end_S,
            span_document_S=span_document_S,
        )

    @property
    def num_blocks(self) -> int:
        return len(self.ids) // self.block_size

    @property
    def lengths(self) -> np.ndarray:
        return self.document_end_D - self.document_start_D

    def document(self, number: int) -> np.ndarray:
        """Token ids of one of the D documents."""
        return self.ids[self.document_start_D[number] : self.document_end_D[number]]

    def prompt_length(self, number: int) -> int:
        """Tokens before the first target of one of the D documents; all of them where it has none."""
        start, end = int(self.document_start_D[number]), int(self.document_end_D[number])
        trained_T = self.mask[start:end]
        return int(trained_T.argmax()) if trained_T.any() else end - start

    @property
    def block_tokens(self) -> np.ndarray:
        """Tokens of each block, without padding."""
        return (self.document_ids.reshape(-1, self.block_size) >= 0).sum(axis=1)


def _spans(trained: np.ndarray, is_start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of trained tokens; none reaches over the start of a document or block."""
    goes_on: np.ndarray = np.zeros(len(trained) + 1, bool)  # whether the token before belongs to the same span
    goes_on[1:-1] = trained[1:] & trained[:-1] & ~is_start[1:]
    starts = np.flatnonzero(trained & ~goes_on[:-1])
    ends = np.flatnonzero(trained & ~goes_on[1:]) + 1
    return starts, ends
