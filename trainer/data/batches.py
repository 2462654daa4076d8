"""Micro-batches of one rank: token, position and document ids, and the target of each position.

Shapes: B blocks, L tokens a block.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch

from finecut.dataprep.shards import BlockReader, Blocks
from finecut.trainer.data import balance
from finecut.trainer.data.balance import PADDING, Imbalance
from finecut.trainer.data.order import Order
from finecut.trainer.data.prefetch import Prefetch
from finecut.trainer.data.source_rows import Sources
from finecut.trainer.parallel.process_group import Devices

IGNORED = -100  # target of a position that is not trained


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Tokens of a batch: those that are predicted in the loss, those that are text, and all places with padding."""

    trained: int = 0
    useful: int = 0
    padded: int = 0

    def __add__(self, other: TokenCounts) -> TokenCounts:
        return TokenCounts(self.trained + other.trained, self.useful + other.useful, self.padded + other.padded)


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """What one forward pass takes; `tokens` counts this micro-batch, D are the documents of its fullest block.

    Of preference pairs, documents 2k and 2k + 1 of a block are the chosen and the rejected one of pair k.
    """

    input_ids_BL: torch.Tensor  # int64
    position_ids_BL: torch.Tensor  # int64; restarts at 0 for each document
    document_ids_BL: torch.Tensor  # int64; -1 on padding
    targets_BL: torch.Tensor  # int64; IGNORED where not trained
    tokens: TokenCounts
    # On the host: documents of each block, the ids of what they were made from (0: none is known), and the margins of
    # pairs (NaN: none is declared).
    num_documents_B: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    example_ids_BD: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int64))
    margins_BP: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    # The source of each document, by its place in Sources.names; -1 where there is none, or it is not known.
    sources_BD: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int64))
    # Where blocks were read: the split, and its rows in each block that counts. Empty: from no split.
    split: str = ""
    rows: tuple[np.ndarray, ...] = ()
    # Tokens of each document, on the host.
    document_lengths: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def num_pairs(self) -> int:
        """Preference pairs, where documents are those of pairs."""
        return int(self.num_documents_B.sum()) // 2

    @property
    def has_document(self) -> np.ndarray:
        """Which places of a block hold a document."""
        return np.arange(self.example_ids_BD.shape[1]) < self.num_documents_B[:, None]

    def to(self, device: torch.device) -> MicroBatch:
        """The same on `device`."""
        return dataclasses.replace(
            self,
            input_ids_BL=self.input_ids_BL.to(device, non_blocking=True),
            position_ids_BL=self.position_ids_BL.to(device, non_blocking=True),
            document_ids_BL=self.document_ids_BL.to(device, non_blocking=True),
            targets_BL=self.targets_BL.to(device, non_blocking=True),
        )


@dataclasses.dataclass(frozen=True)
class StepBatch:
    """One rank's part of a step; equally many micro-batches on every rank.

    `imbalance` and `source_tokens_S`, the tokens of each source, are over all ranks.
    """

    micro_batches: list[MicroBatch]
    imbalance: Imbalance
    source_tokens_S: np.ndarray


class TrainingReader(BlockReader, Protocol):
    """Blocks that know what they cost."""

    def attention_work(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Sum of the squared document lengths of each of these blocks, int64 [N]. Reads no tokens."""

    def rows(self, index: int) -> np.ndarray:
        """The rows of the split that make this block, in order: itself, or documents that were packed on the fly."""


def targets_of(blocks: Blocks) -> np.ndarray:
    """Targets [N, L]: at t the token t+1, where that is in the loss and in the same document; else IGNORED."""
    targets_NL = np.full(blocks.input_ids_NL.shape, IGNORED, dtype=np.int64)
    same_document = blocks.document_id_NL[:, 1:] == blocks.document_id_NL[:, :-1]
    trained = blocks.loss_mask_NL[:, 1:] & same_document & (blocks.document_id_NL[:, 1:] >= 0)
    targets_NL[:, :-1][trained] = blocks.input_ids_NL[:, 1:][trained]
    return targets_NL


class Loader:
    """Makes the micro-batches of one rank from the blocks that it is assigned."""

    def __init__(
        self,
        reader: TrainingReader,
        micro_blocks: int,
        devices: Devices,
        sources: Sources | None = None,
        split: str = "",
    ) -> None:
        """`sources` None: it is not told where documents come from. `split`: what the reader reads."""
        self.reader = reader
        self.sources = sources
        self.split = split
        self.micro_blocks = micro_blocks
        self.devices = devices

    def load(self, assignment: np.ndarray) -> Iterator[MicroBatch]:
        """Micro-batches in CPU memory, of an assignment as `balance` makes them."""
        for indices in assignment[self.devices.data_rank]:
            yield self._micro_batch(indices, spare=int(assignment.max()))

    def _micro_batch(self, indices: np.ndarray, spare: int) -> MicroBatch:
        own = [int(index) for index in indices if index != PADDING]
        # A rank that ran out of blocks still takes part in every collective: it runs a block that counts for nothing.
        blocks = self.reader.read(own or [spare])
        targets_NL = targets_of(blocks) if own else np.full(blocks.input_ids_NL.shape, IGNORED)
        tokens = TokenCounts(
            trained=int((targets_NL != IGNORED).sum()),
            useful=int((blocks.document_id_NL >= 0).sum()) if own else 0,
            padded=len(indices) * self.reader.block_size,
        )
        about = _about_documents(blocks, len(own), len(indices))
        return MicroBatch(
            input_ids_BL=self._tensor(blocks.input_ids_NL, len(indices), fill=0),
            position_ids_BL=self._tensor(blocks.position_id_NL, len(indices), fill=0),
            document_ids_BL=self._tensor(blocks.document_id_NL, len(indices), fill=-1),
            targets_BL=self._tensor(targets_NL, len(indices), fill=IGNORED),
            tokens=tokens,
            document_lengths=_lengths(blocks.document_id_NL[: len(own)]),
            **about,
            sources_BD=self._sources(own, about["num_documents_B"], about["example_ids_BD"].shape),
            split=self.split,
            rows=tuple(self.reader.rows(index) for index in own),
        )

    def _sources(self, own: list[int], num_documents_B: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        sources_BD: np.ndarray = np.full(shape, -1, np.int64)
        if self.sources is not None:
            for n, (index, count) in enumerate(zip(own, num_documents_B.tolist(), strict=False)):
                of_rows = self.sources.of_row_N[self.reader.rows(index)]
                # A row is a block of one source, a document, or a pair of them.
                sources_BD[n, :count] = np.repeat(of_rows, count // len(of_rows))
        return sources_BD

    def _tensor(self, values_NL: np.ndarray, num_blocks: int, fill: int) -> torch.Tensor:
        """With blocks of `fill` where the batch had none left for this rank."""
        padded_BL = np.full((num_blocks, values_NL.shape[1]), fill, dtype=np.int64)
        padded_BL[: len(values_NL)] = values_NL
        return torch.from_numpy(padded_BL)


def _lengths(document_id_NL: np.ndarray) -> np.ndarray:
    """Tokens of each document of these blocks, int64."""
    num_slots = int(document_id_NL.max(initial=-1)) + 2  # the first for padding
    place_NL = document_id_NL + 1 + num_slots * np.arange(len(document_id_NL))[:, None]
    counts = np.bincount(place_NL.ravel(), minlength=num_slots * len(document_id_NL)).reshape(-1, num_slots)[:, 1:]
    return counts[counts > 0]


def _about_documents(blocks: Blocks, num_own: int, num_blocks: int) -> dict[str, np.ndarray]:
    """What is known of the documents of a micro-batch whose first `num_own` blocks count."""
    num_documents_B: np.ndarray = np.zeros(num_blocks, np.int64)
    num_documents_B[:num_own] = blocks.document_id_NL[:num_own].max(axis=1, initial=-1) + 1
    num_slots = int(num_documents_B.max(initial=0))
    example_ids_BD: np.ndarray = np.zeros((num_blocks, num_slots), np.int64)
    margins_BP: np.ndarray = np.full((num_blocks, num_slots // 2), np.nan, np.float32)
    if num_own:
        ids, margins = blocks.example_id_ND[:num_own, :num_slots], blocks.margin_NP[:num_own, : num_slots // 2]
        # Blocks that were made without either have no rows of them.
        example_ids_BD[: len(ids), : ids.shape[1]] = ids
        margins_BP[: len(margins), : margins.shape[1]] = margins
    return {"num_documents_B": num_documents_B, "example_ids_BD": example_ids_BD, "margins_BP": margins_BP}


class Batches:
    """The batches of one split for one rank, by step up to `last_step`, on its device.

    Steps are loaded in a thread ahead of their use, from the first `step` on, until `close`.
    """

    def __init__(
        self,
        reader: TrainingReader,
        order: Order,
        sources: Sources,
        micro_blocks: int,
        devices: Devices,
        last_step: int = 0,
    ) -> None:
        self._sources = sources
        self._ahead = Prefetch(self._load_step, last_step)
        self._loader = Loader(reader, micro_blocks, devices, sources, "train")
        self._order = order

    def step(self, step: int) -> StepBatch:
        """This rank's part of a training step (from 1)."""
        loaded = self._ahead.take(step)
        micro_batches = [batch.to(self._loader.devices.device) for batch in loaded.micro_batches]
        return dataclasses.replace(loaded, micro_batches=micro_batches)

    def close(self) -> None:
        """Ends the thread that loads ahead."""
        self._ahead.close()

    def survey(self, first_step: int, last_step: int) -> Imbalance:
        """Mean imbalance over these steps. Called before the first `step`: readers serve one thread."""
        batches = map(self._order.batch, range(first_step, last_step + 1))
        return balance.mean([self._assign(batch)[1] for batch in batches])

    def _load_step(self, step: int) -> StepBatch:
        assignment, imbalance = self._assign(self._order.batch(step))
        source_tokens_S = self._sources.count(self._order.rows(step))
        return StepBatch(list(self._loader.load(assignment)), imbalance, source_tokens_S)

    def _assign(self, batch: np.ndarray) -> tuple[np.ndarray, Imbalance]:
        """Which rank takes which blocks of a global batch; every rank computes the same from the lengths alone."""
        loader = self._loader
        work = loader.reader.attention_work(batch)
        return balance.assign(batch, work, loader.devices.data_size, loader.micro_blocks)


class HeldOut:
    """The blocks of the evaluation split by source, in stored order."""

    def __init__(
        self, reader: TrainingReader, blocks_by_source: dict[str, np.ndarray], micro_blocks: int, devices: Devices
    ) -> None:
        """`blocks_by_source`: what the reader calls the blocks of each source; one that has none may be left out."""
        self._loader = Loader(reader, micro_blocks, devices, split="evaluation")
        self._blocks_by_source = blocks_by_source

    def by_source(self, max_blocks: int | None) -> Iterator[tuple[str, Iterator[MicroBatch]]]:
        """This rank's share of each source's first blocks: `max_blocks` of all together (None: every block).

        A bound is shared out in proportion, rounded; every source keeps one block at least.
        """
        total = sum(map(len, self._blocks_by_source.values()))
        share = 1.0 if max_blocks is None else min(1.0, max_blocks / max(1, total))
        for name, blocks in self._blocks_by_source.items():
            yield name, self._load(blocks[: max(1, round(share * len(blocks)))])

    def _load(self, blocks: np.ndarray) -> Iterator[MicroBatch]:
        devices = self._loader.devices
        assignment = balance.assign_in_order(blocks, devices.data_size, self._loader.micro_blocks)
        return (batch.to(devices.device) for batch in self._loader.load(assignment))
