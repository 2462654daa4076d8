"""The export in vLLM: what whoever serves it will get, held to what was trained.

vLLM gives the log-probabilities of the checked documents, and greedy answers to them with theirs. The answers are then
read by the reference, which was held to the trainer before: each token must be the one that the reference would choose,
up to a tie within tolerance. As stop tokens are tokens, that also holds where an answer stops.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.serving import offline
from finecut.trainer.serving.offline import Answer, Decoding, OfflineConfig

# Nats. FP32 on both sides leaves 1e-4 on 30 layers; a lost row, norm or head shows at 1e-1 and more.
FP32_TOLERANCE = 5e-3
# On GPUs vLLM computes in the written type: BF16 leaves 1e-2 in the mean, FP16 less.
ROUNDED_TOLERANCE = 5e-2
_MAX_NEW_TOKENS = 24


@dataclasses.dataclass(frozen=True)
class VllmAnswers:
    """What vLLM says: of each document the log-probabilities [length - 1], and a greedy answer to it."""

    # None with an adapter, see OfflineModel.
    log_probabilities: list[Tensor] | None
    answers: list[Answer]
    stop_tokens: tuple[int, ...]
    # Whether it computed in FP32.
    is_exact: bool

    @property
    def tolerance(self) -> float:
        """Nats: of each log-probability in FP32, of their mean difference otherwise; and of a tie."""
        return FP32_TOLERANCE if self.is_exact else ROUNDED_TOLERANCE


def ask(
    base: Path, adapter: Path | None, documents: Sequence[Tensor], stop_tokens: Sequence[int], is_exact: bool
) -> VllmAnswers:
    """Loads the model, asks, and gives the memory back. Raises UserError when vLLM does not load or run it."""
    lists = [document.tolist() for document in documents]
    config = OfflineConfig(
        base,
        adapter,
        number_type="float32" if is_exact else None,
        max_sequence_tokens=max(map(len, lists)) + _MAX_NEW_TOKENS,
    )
    decoding = Decoding(_MAX_NEW_TOKENS, stop_token_ids=tuple(stop_tokens))
    with offline.load(config) as model:
        try:
            log_probabilities = None if adapter else model.log_probabilities(lists)
            answers = model.answer(lists, [decoding] * len(lists))
        except RuntimeError as error:  # a shape for which it has no kernel, such as small heads on CPUs
            raise UserError(
                f"vLLM loads the export and cannot run it: {str(error).strip().splitlines()[-1]}; serve it with"
                " something else and set export.check_vllm to false, or train another model"
            ) from error
        return VllmAnswers(log_probabilities, answers, tuple(stop_tokens), is_exact)


def require_agreement(
    found: VllmAnswers, documents: Sequence[Tensor], logits_of: Callable[[Sequence[Tensor]], list[Tensor]]
) -> float:
    """Raises UserError where vLLM computes something else; returns the largest difference found, in nats.

    Args:
      logits_of: logits [length, vocabulary] of each document, of the model that was held to the trainer.
    """
    whole = [torch.cat([d, torch.tensor(a.token_ids)]) for d, a in zip(documents, found.answers, strict=True)]
    differences: list[Tensor] = []
    for number, (ids, logits, answer) in enumerate(zip(whole, logits_of(whole), found.answers, strict=True)):
        ours, start = _chosen(logits, ids), len(documents[number]) - 1
        differences.append((torch.tensor(answer.log_probabilities) - ours[start:]).abs())
        if found.log_probabilities is not None:
            differences.append((found.log_probabilities[number] - ours[:start]).abs())
        _require_greedy(found, answer, logits[start:-1])
    return _require_small(torch.cat(differences), found)


def _require_small(differences: Tensor, found: VllmAnswers) -> float:
    worst = differences.max() if found.is_exact else differences.mean()
    if not worst <= found.tolerance:  # also where it is not a number
        raise UserError(
            f"the exported model, reloaded in vLLM, does not compute what was trained: log-probabilities differ by"
            f" {differences.max():.3g} nats, {differences.mean():.3g} in the mean; nothing was exported"
        )
    return float(differences.max())


def _chosen(logits_TV: Tensor, document_T: Tensor) -> Tensor:
    return logits_TV[:-1].log_softmax(-1).gather(-1, document_T[1:, None])[:, 0]


def _require_greedy(found: VllmAnswers, answer: Answer, logits_TV: Tensor) -> None:
    """Each token of the answer is the reference's own choice, or as likely."""
    ids = torch.tensor(answer.token_ids)
    behind_T = logits_TV.max(-1).values - logits_TV.gather(-1, ids[:, None])[:, 0]
    # The best of many tokens is off by more than their mean; ten times that is still far from another choice.
    far = (behind_T > 10 * found.tolerance).nonzero()
    if len(far):
        place = int(far[0])
        wanted = int(logits_TV[place].argmax())
        raise UserError(
            f"the exported model, reloaded in vLLM, answers differently from what was trained: token {place} of its"
            f" greedy answer is {int(ids[place])}, where the trained model says {wanted}; nothing was exported"
        )
    ends = bool(len(ids)) and int(ids[-1]) in found.stop_tokens
    if answer.is_stopped != ends or any(int(i) in found.stop_tokens for i in ids[:-1]):
        raise UserError(
            "the exported model, reloaded in vLLM, does not stop where the trained one does; nothing was exported"
        )
