"""Which tokens are hardest: how their losses are spread, and the worst of them in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from finecut.trainer.data.batches import IGNORED, MicroBatch

_WORST = 20
_CONTEXT = 12  # tokens shown before each
_SHARES = (0.5, 0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class WorstToken:
    """A token that was hard to predict, and what stood before it."""

    nats: float
    token: str
    before: str


@dataclasses.dataclass(frozen=True)
class TokenLosses:
    """Of the trained tokens of one micro-batch, of this rank."""

    nats_N: Tensor
    worst: tuple[WorstToken, ...]

    def scalars(self) -> dict[str, float]:
        """Quantiles."""
        if not self.nats_N.numel():
            return {}
        named = zip(("p50", "p90", "p99", "max"), (*_SHARES, 1.0), strict=True)
        return {f"token_loss/{name}": float(np.quantile(self.nats_N.numpy(), share)) for name, share in named}

    def table(self) -> str:
        """The worst, as Markdown."""
        rows = [f"| {worst.nats:.2f} | {_cell(worst.token)} | {_cell(worst.before)} |" for worst in self.worst]
        return "\n".join(["| nats | token | after |", "|---|---|---|", *rows])


def of_batch(batch: MicroBatch, nats_BL: Tensor, decode: Callable[[Sequence[int]], str]) -> TokenLosses:
    """Takes the losses of a micro-batch apart. Waits for the device."""
    nats_BL, targets_BL, ids_BL = nats_BL.float().cpu(), batch.targets_BL.cpu(), batch.input_ids_BL.cpu()
    documents_BL = batch.document_ids_BL.cpu()
    is_trained_BL = targets_BL != IGNORED
    nats_N = nats_BL[is_trained_BL]
    rows, places = torch.nonzero(is_trained_BL, as_tuple=True)
    worst = []
    for index in nats_N.topk(min(_WORST, len(nats_N))).indices.tolist():
        row, place = int(rows[index]), int(places[index])
        begin = max(0, place + 1 - _CONTEXT)
        same = documents_BL[row, begin : place + 1] == documents_BL[row, place]
        before = ids_BL[row, begin : place + 1][same].tolist()
        token = decode([int(targets_BL[row, place])])
        worst.append(WorstToken(float(nats_N[index]), token, decode(before)))
    return TokenLosses(nats_N, tuple(worst))


def _cell(text: str) -> str:
    return f"`{text!r}`".replace("|", "\\|")
