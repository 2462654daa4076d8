"""Who of two answers better: by a reward model's number, or by a chat model that is asked twice, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from finecut.dataprep import tokenization
from finecut.proto.config import UserError
from finecut.trainer.evaluate import answers
from finecut.trainer.evaluate.forward import score_documents
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.source import ModelSource, locate_model
from finecut.trainer.stages.samples import encode, load_tokenizer
from finecut.trainer.stages.stop_token import after_answer

QUESTION = """Two assistants answered the same request. Say which answer is better: more correct, more to the point.

[Request]
{prompt}

[Answer A]
{first}

[Answer B]
{second}

Which answer is better? Reply with one letter, A or B."""


def judge(
    folder: Path,
    prompts: Sequence[Sequence[int]],
    ours: Sequence[Sequence[int]],
    theirs: Sequence[Sequence[int]],
    tokenizer: Any,
    tensor_parallel_size: int,
) -> np.ndarray:
    """[N]: 1 where our answer is better, 0 where the opponent's is, 0.5 where neither. All in the tokenizer's ids.

    Raises UserError where the judge cannot judge them.
    """
    source = locate_model(folder)
    head = head_of(source)
    if head is None:
        texts = [
            [tokenizer.decode(list(ids), skip_special_tokens=True).strip() for ids in part]
            for part in (prompts, ours, theirs)
        ]
        return _ask(folder, texts, tensor_parallel_size)
    if not head.is_scalar:
        raise UserError(f"win_rate.judge: {folder} has {head.num_outputs} outputs; a judge has one, or is a chat model")
    return _score(source, prompts, ours, theirs, tokenizer)


def _score(source: ModelSource, prompts: Any, ours: Any, theirs: Any, tokenizer: Any) -> np.ndarray:
    own = load_tokenizer(source.tokenizer)
    if tokenization.vocabulary_fingerprint(own) != tokenization.vocabulary_fingerprint(tokenizer):
        raise UserError(
            f"win_rate.judge: {source.base} was trained with another vocabulary than the models have; train it from a"
            " model of their family"
        )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load_decoder(source, device, output_head=head_of(source))
    # A reward model reads its number at the last token, so an answer must end as those did that it was trained on.
    tail = after_answer(own)
    documents = [
        torch.tensor([*prompt, *answer, *tail])
        for part in (ours, theirs)
        for prompt, answer in zip(prompts, part, strict=True)
    ]
    our_N, their_N = np.array(score_documents(model, documents)).reshape(2, -1)
    return (our_N > their_N) + 0.5 * (our_N == their_N)


def _ask(folder: Path, texts: Sequence[Sequence[str]], tensor_parallel_size: int) -> np.ndarray:
    """A judge prefers what stands first or second for no reason; asked both ways, that cancels out."""
    with answers.asked(folder, tensor_parallel_size, seed=0) as model:
        letters = [_letter(model.tokenizer, letter, folder) for letter in "AB"]
        orders = ((0, 1), (1, 0))
        questions = [
            encode(model.tokenizer, QUESTION.format(prompt=prompt, first=pair[a], second=pair[b]))["input_ids"][
                0
            ].tolist()
            for a, b in orders
            for prompt, *pair in zip(*texts, strict=True)
        ]
        found = model.engine.next_token_log_probabilities(questions, letters)
    first_2N = torch.tensor(found).softmax(-1)[:, 0].double().numpy().reshape(2, -1)
    preference_N = (first_2N[0] + 1 - first_2N[1]) / 2
    same = np.array([ours == theirs for _, ours, theirs in zip(*texts, strict=True)])
    return np.where(same, 0.5, (preference_N > 0.5) + 0.5 * (preference_N == 0.5))


def _letter(tokenizer: Any, letter: str, folder: Path) -> int:
    ids = tokenizer(letter, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise UserError(f"win_rate.judge: {folder}: its tokenizer has no token {letter!r} to answer with")
    return ids[0]
