"""The losses of a batch's tokens, by a forward pass of their own: the hardest are shown in words."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finecut.dataprep import tokenization
from finecut.trainer.data.batches import IGNORED, MicroBatch
from finecut.trainer.metrics import token_losses
from finecut.trainer.metrics.token_losses import TokenLosses
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.documents import cross_entropy_of, inputs_of, sum_by_document
from finecut.trainer.recipes.objective import Objective


@dataclasses.dataclass(frozen=True)
class Measured:
    """Of single tokens. `losses` are rank 0's; `by_source` is of all ranks: nats a trained token, by its metric."""

    losses: TokenLosses | None = None
    by_source: dict[str, float] = dataclasses.field(default_factory=dict)


def measure(
    objective: Objective,
    model: Decoder,
    batches: Sequence[MicroBatch],
    tokenizer: Path,
    sources: Sequence[str],
    devices: Devices,
) -> Measured:
    """Of each rank's first micro-batch, with the weights as they are now and without dropout. Collective.

    Nothing for recipes whose loss is not one of tokens.
    """
    if not getattr(objective, "is_of_tokens", False) or not batches:
        return Measured()
    batch = batches[0]
    nats_BL = _losses(model, batch)
    losses = token_losses.of_batch(batch, nats_BL, _decoder(tokenizer)) if devices.is_main else None
    return Measured(losses, _by_source(batch, nats_BL, sources, devices))


def _by_source(batch: MicroBatch, nats_BL: Tensor, sources: Sequence[str], devices: Devices) -> dict[str, float]:
    """Collective. Nothing where the data do not say where documents come from."""
    if not sources:
        return {}
    nats_BD = sum_by_document(batch, nats_BL).cpu()
    tokens_BD = sum_by_document(batch, (batch.targets_BL != IGNORED).to(nats_BL.dtype)).cpu()
    sums = []
    for number in range(len(sources)):
        of_source_BD = torch.from_numpy(batch.sources_BD == number)
        sums += [float(nats_BD[of_source_BD].sum()), float(tokens_BD[of_source_BD].sum())]
    totals = devices.sum_over_data(*sums)
    found = zip(sources, totals[::2], totals[1::2], strict=True)
    return {f"token_loss/source/{name}": nats / tokens for name, nats, tokens in found if tokens}


@functools.lru_cache(maxsize=1)
def _decoder(tokenizer: Path) -> Callable[[Sequence[int]], str]:
    """Ids to text. Loading it takes longer than what it is for."""
    return tokenization.load(tokenizer, needs_template=False).decode


@torch.no_grad()
def _losses(model: Decoder, batch: MicroBatch) -> Tensor:
    """Nats of each token, [B, L]; 0 where none is trained. Draws no random number, so a resumed run stays exact."""
    nats_BL = torch.zeros(batch.targets_BL.shape, device=batch.targets_BL.device)
    trained = TrainedTokens.of(batch.targets_BL)

    def read_out(model: Decoder, hidden_BLD: Tensor) -> Tensor:
        return cross_entropy_of(model, hidden_BLD, trained, token_losses_BL=nats_BL)

    model.eval()
    model(*inputs_of(batch), read_out=read_out)
    model.train()
    gathering.reshard(model)
    return nats_BL
