"""The losses of a batch's tokens, by a forward pass of their own: the hardest are shown in words."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finecut.dataprep import tokenization
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.metrics import token_losses
from finecut.trainer.metrics.token_losses import TokenLosses
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.parallel import gathering
from finecut.trainer.recipes.documents import cross_entropy_of, inputs_of
from finecut.trainer.recipes.objective import CrossEntropy, Objective


def measure(
    objective: Objective, model: Decoder, batches: Sequence[MicroBatch], tokenizer: Path, is_main: bool
) -> TokenLosses | None:
    """Of rank 0's first micro-batch, with the weights as they are now and without dropout. Collective.

    None on other ranks, and for recipes whose loss is not one of tokens.
    """
    if not isinstance(objective, CrossEntropy) or not batches:
        return None
    nats_BL = _losses(model, batches[0])
    return token_losses.of_batch(batches[0], nats_BL, _decoder(tokenizer)) if is_main else None


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
