"""What the trainer's own forward pass measures: held-out loss, the rank of next items, a reward model's numbers. FP32.

Shapes: T tokens of a document, L tokens of a packed row, I items.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from finecut.proto.config import UserError
from finecut.trainer.data.batches import IGNORED
from finecut.trainer.evaluate.config import Ranking
from finecut.trainer.evaluate.documents import Document
from finecut.trainer.evaluate.scores import Scores
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.logits import pack, packed_logits
from finecut.trainer.recipes.documents import TokenLogProbabilities

_ROW_TOKENS = 8192  # of one packed row; a longer document has one of its own
_Item = TypeVar("_Item")


@torch.no_grad()
def perplexity(model: Decoder, documents: Sequence[Document], task: str) -> list[Scores]:
    """Loss and perplexity over the targets of all documents; an example is a document and weighs its targets."""
    losses, counts, names = [], [], []
    for row in rows_of(documents, lambda document: len(document.input_ids_T)):
        device = model.embedding.weight.device
        ids, positions, document_ids = pack([torch.from_numpy(d.input_ids_T).long() for d in row], device)
        targets = [_targets(document) for document in row]
        num_tokens = sum(map(len, targets))
        targets_1L = functional.pad(torch.cat(targets), (0, ids.shape[1] - num_tokens), value=IGNORED)[None]
        read_out = TokenLogProbabilities(targets_1L.to(device))
        found_L = model(ids, positions, document_ids, read_out=read_out).double().cpu()[:num_tokens]
        for document, part_T, targets_T in zip(row, found_L.split(list(map(len, targets))), targets, strict=True):
            if count := int((targets_T != IGNORED).sum()):
                losses.append(-float(part_T.sum()) / count)
                counts.append(float(count))
                names.append(document.example_id)
    if not losses:
        raise UserError(f"task {task!r}: none of the documents has a token that counts")
    values, weights, ids_N = np.array(losses), np.array(counts), tuple(names)
    return [
        Scores(task, "loss", ids_N, values, weights, higher_is_better=False),
        Scores(task, "perplexity", ids_N, values, weights, is_exponential=True, higher_is_better=False),
    ]


@torch.no_grad()
def ranking(model: Decoder, documents: Sequence[Document], how: Ranking, task: str) -> list[Scores]:
    """Hit rate, NDCG and MRR of each sequence's last items among all items, after the history before them."""
    num_items, count = model.config.semantic_id_count, how.next_item_count
    if not num_items:
        raise UserError(f"task {task!r}: the model has no ids to rank; train one with model.semantic_id_count")
    long_enough = [document for document in documents if len(document.input_ids_T) > count]
    if not long_enough:
        raise UserError(f"task {task!r}: every sequence has {count} items or fewer, which leaves no history")
    ranks = []
    for row in rows_of(long_enough, lambda document: len(document.input_ids_T) - count):
        histories = [torch.from_numpy(document.input_ids_T[:-count]).long() for document in row]
        ends = torch.tensor([len(history) for history in histories]).cumsum(0) - 1
        scores_NI = model(*pack(histories, model.embedding.weight.device), read_out=_ItemScores(ends)).cpu()
        first = model.config.vocabulary_size - num_items
        for document, scores_I in zip(row, scores_NI, strict=True):
            ranks.append(ranks_of(scores_I, sorted(set((document.input_ids_T[-count:] - first).tolist()))))
    return _ranking_scores(ranks, how, task, tuple(document.example_id for document in long_enough))


def score_documents(model: Decoder, documents: Sequence[Tensor]) -> list[float]:
    """A reward model's number for each document."""
    rows = rows_of(documents, len)
    return [float(outputs[0, 0]) for row in rows for outputs in packed_logits(model, row)]


def rows_of(documents: Sequence[_Item], length: Callable[[_Item], int]) -> Iterator[list[_Item]]:
    """Documents in order, as many as a row takes."""
    row: list[_Item] = []
    used = 0
    for document in documents:
        if row and used + length(document) > _ROW_TOKENS:
            yield row
            row, used = [], 0
        row.append(document)
        used += length(document)
    if row:
        yield row


def ranks_of(scores_I: Tensor, items: Sequence[int]) -> np.ndarray:
    """Ranks of the items, from 1, ascending. Of equal scores the others come first: a constant model gains nothing."""
    wanted = scores_I[list(items)]
    return np.sort((scores_I[None] >= wanted[:, None]).sum(1).numpy())


def _ranking_scores(ranks: Sequence[np.ndarray], how: Ranking, task: str, names: tuple[str, ...]) -> list[Scores]:
    def scores(metric: str, of: Callable[[np.ndarray], float]) -> Scores:
        return Scores(task, metric, names, np.array([of(one) for one in ranks], float))

    found = []
    for cutoff in how.cutoffs:
        found.append(scores(f"hit_rate_at_{cutoff}", partial(_hit, cutoff=cutoff)))
        found.append(scores(f"ndcg_at_{cutoff}", partial(_ndcg, cutoff=cutoff)))
    return [*found, scores("mrr", lambda r: 1 / r[0])]


def _hit(ranks: np.ndarray, cutoff: int) -> float:
    """1 where one of the items is found."""
    return float(ranks[0] <= cutoff)


def _ndcg(ranks: np.ndarray, cutoff: int) -> float:
    """Normalised discounted cumulative gain (Jarvelin and Kekalainen, 2002) with relevance 0 or 1."""
    best = np.arange(1, min(len(ranks), cutoff) + 1)
    return float((1 / np.log2(1 + ranks[ranks <= cutoff])).sum() / (1 / np.log2(1 + best)).sum())


class _ItemScores:
    """Reads a decoder out as the scores of all items after each history, [histories, I]; softmax keeps their order."""

    def __init__(self, ends: Tensor) -> None:
        self._ends = ends

    def __call__(self, model: Decoder, hidden_1LD: Tensor) -> Tensor:
        size = model.config.vocabulary_size
        items = model.head_weight()[size - model.config.semantic_id_count : size]
        return functional.linear(hidden_1LD[0, self._ends.to(hidden_1LD.device)], items).float()


def _targets(document: Document) -> Tensor:
    """What each token has to predict: the next one, where that counts."""
    following = torch.from_numpy(document.input_ids_T[1:]).long()
    counts = torch.from_numpy(document.loss_mask_T[1:])
    return functional.pad(torch.where(counts, following, IGNORED), (0, 1), value=IGNORED)
