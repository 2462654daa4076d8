"""The teacher's shards by forward passes of the trainer's own, the teacher sharded over all ranks as students are."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops import kept_tokens
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.ops.kept_tokens import KeptTokens
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.documents import head_config
from finecut.trainer.teachers.making import Order, ShardMaker
from finecut.trainer.teachers.rows import RowBlocks
from finecut.trainer.teachers.shards import Kept, Shard


@dataclasses.dataclass(frozen=True)
class AskedModel:
    """A decoder."""

    model: Decoder
    top_k: int
    temperature: float
    device: torch.device
    blocks_at_once: int

    @torch.no_grad()
    def ask(self, rows: RowBlocks) -> Kept:
        """Collective."""
        blocks = rows.blocks
        numbers = (blocks.input_ids_NL, blocks.position_id_NL, blocks.document_id_NL, rows.targets_BL)
        ids_BL, positions_BL, documents_BL, targets_BL = (torch.from_numpy(x).long().to(self.device) for x in numbers)
        read_out = _Likeliest(TrainedTokens.of(targets_BL), self.top_k, self.temperature)
        found: KeptTokens = self.model(ids_BL, positions_BL, documents_BL, read_out=read_out)
        gathering.reshard(self.model)
        ids_NK, log_probs_NK, rest_N = (x.cpu().numpy() for x in (found.token_ids_NK, found.log_probs_NK, found.rest_N))
        return Kept(ids_NK, log_probs_NK, rest_N)


class _Likeliest:
    """Reads a decoder out as what it keeps of trained tokens."""

    def __init__(self, trained: TrainedTokens, top_k: int, temperature: float) -> None:
        self._trained = trained
        self._top_k = top_k
        self._temperature = temperature

    def __call__(self, model: Decoder, hidden_BLE: Tensor) -> KeptTokens:
        hidden_NE = hidden_BLE.flatten(0, 1)[self._trained.position_N]
        return kept_tokens.keep(hidden_NE, model.head_weight(), head_config(model), self._top_k, self._temperature)


def make(order: Order, missing: Sequence[Shard], teacher: AskedModel, devices: Devices) -> Iterator[Shard | None]:
    """This rank's share of the missing shards; every rank makes as many passes. Collective."""
    own = missing[devices.data_rank :: devices.data_size]
    maker = ShardMaker(order, own or missing[:1], teacher.blocks_at_once)
    num_own = maker.num_calls() if own else 0
    num_passes = int(devices.max(num_own))
    if own:
        # Ranks that split each matrix have the same; one of them writes.
        yield from maker.make(teacher, is_written=devices.rank % devices.tensor_size == 0)
    for _ in range(num_passes - num_own):
        teacher.ask(maker.first())  # the others wait for this rank's shards of the weights
        yield None
