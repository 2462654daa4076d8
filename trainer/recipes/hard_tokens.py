"""The losses of a batch's tokens, by a forward pass of their own: the hardest are shown in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from finecut.dataprep import tokenization
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.metrics import token_losses
from finecut.trainer.metrics.token_losses import TokenLosses
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.ops.cross_entropy import TrainedTokens, cross_entropy_sum
from finecut.trainer.parallel import gathering
from finecut.trainer.recipes.documents import head_config, inputs_of
from finecut.trainer.recipes.objective import CrossEntropy, Objective


def measure(objective: Objective, model: Decoder, batches: Sequence[MicroBatch], tokenizer: Path) -> TokenLosses | None:
    """Of the first micro-batch of this rank, with the weights as they are now and without dropout. Collective.

    None for recipes whose loss is not one of tokens.
    """
    if not isinstance(objective, CrossEntropy) or not batches:
        return None
    nats_BL = _losses(model, batches[0])
    decoder = tokenization.load(tokenizer, needs_template=False)
    return token_losses.of_batch(batches[0], nats_BL, decoder.decode)


@torch.no_grad()
def _losses(model: Decoder, batch: MicroBatch) -> Tensor:
    """Nats of each token, [B, L]; 0 where none is trained. Draws no random number, so a resumed run stays exact."""
    nats_BL = torch.zeros(batch.targets_BL.shape, device=batch.targets_BL.device)
    trained = TrainedTokens.of(batch.targets_BL)

    def read_out(model: Decoder, hidden_BLD: Tensor) -> Tensor:
        head = head_config(model)
        return cross_entropy_sum(
            hidden_BLD.flatten(0, 1),
            model.head_weight(),
            trained,
            head.chunk_tokens,
            head.vocabulary_size,
            soft_cap=head.soft_cap,
            vocabulary=head.slice,
            token_losses_T=nats_BL.view(-1),
        )

    model.eval()
    model(*inputs_of(batch), read_out=read_out)
    model.train()
    gathering.reshard(model)
    return nats_BL
