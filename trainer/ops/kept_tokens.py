"""A teacher's likeliest tokens at each place, and the logits that they are found in.

Shapes: N tokens, C tokens of a chunk, E hidden size, V vocabulary (padded, or one rank's slice of it), K kept.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from finecut.trainer.ops.head import HeadConfig
from finecut.trainer.ops.vocabulary_parallel import NO_TARGET, VocabularySlice


@dataclasses.dataclass(frozen=True)
class KeptTokens:
    """What a teacher says of its likeliest tokens, the temperature applied: [N, K], and of all others together, [N].

    Ids count over the whole vocabulary; ranks that split it have the same.
    """

    token_ids_NK: Tensor
    log_probs_NK: Tensor
    rest_N: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.rest_N)

    def __getitem__(self, chunk: slice) -> KeptTokens:
        """Of some of the tokens."""
        return KeptTokens(self.token_ids_NK[chunk], self.log_probs_NK[chunk], self.rest_N[chunk])


def keep(hidden_NE: Tensor, weight_VE: Tensor, head: HeadConfig, top_k: int, temperature: float) -> KeptTokens:
    """The K likeliest tokens of all places, logits for one chunk at a time. Collective where ranks split the weight."""
    # Logits, and their softmax without the kept ones, exist at a time.
    step = max(1, head.chunk_of(weight_VE) // 4)
    found = [
        keep_of_logits(capped(logits_of(chunk_CE, weight_VE, head), head), top_k, temperature, head.slice)
        for chunk_CE in hidden_NE.split(step)
    ]
    return KeptTokens(
        torch.cat([chunk.token_ids_NK for chunk in found]),
        torch.cat([chunk.log_probs_NK for chunk in found]),
        torch.cat([chunk.rest_N for chunk in found]),
    )


def keep_of_logits(logits_CV: Tensor, top_k: int, temperature: float, vocabulary: VocabularySlice | None) -> KeptTokens:
    """The K likeliest tokens, of all ranks where each has a slice of the logits. Collective then."""
    logits_CV = logits_CV / temperature
    log_probs_CV = logits_CV - log_normalizer(logits_CV, vocabulary)[:, None]
    count = min(top_k, log_probs_CV.shape[1])
    log_probs_CK, ids_CK = log_probs_CV.topk(count, dim=-1)
    first_row = 0
    if vocabulary is not None:
        first_row = vocabulary.first_row
        missing = (0, top_k - count)  # a rank may have fewer tokens
        values_CG = vocabulary.gather(functional.pad(log_probs_CK, missing, value=-torch.inf))
        ids_CG = vocabulary.gather(functional.pad(ids_CK + first_row, missing, value=NO_TARGET))
        log_probs_CK, at_CK = values_CG.topk(top_k, dim=-1)
        ids_CK = ids_CG.gather(-1, at_CK)
    others_CV = log_probs_CV.masked_fill(is_kept(log_probs_CV, ids_CK, first_row), -torch.inf)
    return KeptTokens(ids_CK, log_probs_CK, log_normalizer(others_CV, vocabulary))


def is_kept(logits_CV: Tensor, token_ids_CK: Tensor, first_row: int) -> Tensor:
    """[C, V] True where a token of this rank is among these."""
    own_CK = token_ids_CK - first_row
    is_own_CK = (own_CK >= 0) & (own_CK < logits_CV.shape[1])
    counts_CV = torch.zeros(logits_CV.shape, dtype=torch.int32, device=logits_CV.device)
    return counts_CV.scatter_add(1, own_CK.clamp(0, logits_CV.shape[1] - 1), is_own_CK.int()) > 0


def log_normalizer(logits_CV: Tensor, vocabulary: VocabularySlice | None) -> Tensor:
    """[C], over the slices of all ranks. Collective then."""
    log_normalizer_C = logits_CV.logsumexp(-1)
    if vocabulary is None:
        return log_normalizer_C
    return vocabulary.combine(log_normalizer_C, torch.zeros_like(log_normalizer_C))[0]


def logits_of(hidden_CD: Tensor, weight_VD: Tensor, head: HeadConfig) -> Tensor:
    """[C, vocabulary, or this rank's slice of it] in FP32 or FP64, before they are capped; padding is left out."""
    logits_CV = (hidden_CD @ weight_VD.T)[:, : num_real_rows(weight_VD, head)]
    return logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))


def num_real_rows(weight_VD: Tensor, head: HeadConfig) -> int:
    """Rows of the weight that are real tokens."""
    if head.slice is None:
        return head.vocabulary_size
    return head.slice.size_of(head.vocabulary_size, weight_VD.shape[0])


def capped(logits_CV: Tensor, head: HeadConfig) -> Tensor:
    """As the head says."""
    return logits_CV if head.soft_cap is None else head.soft_cap * torch.tanh(logits_CV / head.soft_cap)
