"""Where the rows of a split come from, and how many tokens of each source a run has seen."""

from __future__ import annotations

import dataclasses

import numpy as np

from finecut.proto import artifact_pb2
from finecut.trainer.data.mix import Part
from finecut.trainer.data.order import Order


@dataclasses.dataclass(frozen=True)
class Sources:
    """The sources of one split. A row is a block, or a document where the trainer packs.

    Data of earlier versions does not say where its rows come from: it is one source.

    Attributes:
      names: As in the job file.
      of_row_N: The source of each row, by its place in `names`.
      tokens_N: Tokens of each row without padding.
    """

    names: tuple[str, ...]
    of_row_N: np.ndarray
    tokens_N: np.ndarray

    @classmethod
    def of(cls, data: artifact_pb2.DataArtifact, split: str, tokens_N: np.ndarray) -> Sources:
        """The sources of this split of a prepared artifact."""
        (entry,) = [entry for entry in data.splits if entry.name == split]
        if not entry.sources:
            return cls(("all",), np.zeros(len(tokens_N), np.int32), tokens_N)
        numbers = [part.source for part in entry.sources]
        of_row_N: np.ndarray = np.repeat(np.array(numbers, np.int32), [part.row_count for part in entry.sources])
        assert len(of_row_N) == len(tokens_N), f"{len(of_row_N)} rows in the manifest, {len(tokens_N)} in the shards"
        return cls(tuple(source.name for source in data.sources), of_row_N, tokens_N)

    def __len__(self) -> int:
        return len(self.names)

    def rows(self, number: int) -> np.ndarray:
        """The rows of one source."""
        return np.flatnonzero(self.of_row_N == number)

    def tokens(self) -> np.ndarray:
        """Tokens of each source, int64."""
        return self.count(np.arange(len(self.of_row_N)))

    def count(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of each source in these rows, int64."""
        counts = np.bincount(self.of_row_N[rows], weights=self.tokens_N[rows], minlength=len(self))
        return counts.astype(np.int64)

    def count_before(self, order: Order, step: int) -> np.ndarray:
        """Tokens of each source in all steps up to and including this one, int64."""
        if not step:
            return np.zeros(len(self), np.int64)
        weights = self.tokens_N * order.times_taken(step)
        return np.bincount(self.of_row_N, weights=weights, minlength=len(self)).astype(np.int64)


def parts_of(data: artifact_pb2.DataArtifact, sources: Sources, num_blocks: list[int]) -> list[Part]:
    """The sources as the mix takes them; `num_blocks` are those of one pass over each."""
    tokens = sources.tokens().tolist()
    parts = []
    for number, name in enumerate(sources.names):
        entry = data.sources[number] if number < len(data.sources) else artifact_pb2.DataArtifact.SourceStatistics()
        kind = entry.WhichOneof("mixing")
        wanted = {kind: getattr(entry, kind)} if kind else {}
        parts.append(Part(name, num_blocks[number], tokens[number], **wanted))
    return parts


class SourceMeter:
    """Counts what a run has seen of each source. What came before a resumed run follows from its step."""

    def __init__(self, sources: Sources, order: Order, step: int) -> None:
        self._names = sources.names
        self._sizes = np.maximum(sources.tokens(), 1)
        # With one source there is nothing to tell apart.
        self.tokens = sources.count_before(order, step) if len(sources) > 1 else None

    def add(self, tokens_S: np.ndarray) -> None:
        """Takes the tokens of one step, over all ranks."""
        if self.tokens is not None:
            self.tokens = self.tokens + tokens_S

    def scalars(self) -> dict[str, float]:
        """Tokens and passes by source; empty where there is one source."""
        if self.tokens is None:
            return {}
        found = {f"tokens_seen/{name}": float(n) for name, n in zip(self._names, self.tokens, strict=True)}
        passes = self.tokens / self._sizes
        return found | {f"epochs_seen/{name}": float(n) for name, n in zip(self._names, passes, strict=True)}
