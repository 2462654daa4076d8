"""Which sampled tokens the policy thought least likely, in words: where samples go astray."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from finecut.trainer.metrics.token_losses import TokenLosses, WorstToken
from finecut.trainer.rollout.sample import Sample

_WORST = 20
_CONTEXT = 12  # tokens shown before each


def of_samples(samples: Sequence[Sample], decode: Callable[[Sequence[int]], str]) -> TokenLosses:
    """Nats of each sampled token under the policy that sampled it; what an environment wrote is left out."""
    places = [(sample, place) for sample in samples for place, is_sampled in enumerate(sample.loss_mask) if is_sampled]
    nats_N = torch.tensor([-sample.log_probabilities[place] for sample, place in places])
    worst = []
    for index in nats_N.topk(min(_WORST, len(nats_N))).indices.tolist():
        sample, place = places[index]
        before = (*sample.prompt_ids, *sample.answer_ids[:place])[-_CONTEXT:]
        worst.append(WorstToken(float(nats_N[index]), decode([sample.answer_ids[place]]), decode(list(before))))
    return TokenLosses(nats_N, tuple(worst))
