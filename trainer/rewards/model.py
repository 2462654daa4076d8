"""A reward model's number for an answer: frozen, sharded over the ranks, on packed rows of tokens as they were sampled.

Shapes: B rows of a micro-batch, L tokens a row.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from finecut.dataprep import tokenization
from finecut.dataprep.packing import best_fit_decreasing
from finecut.proto.config import UserError
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.heads import head_of
from finecut.trainer.models.huggingface import locate_model
from finecut.trainer.parallel import gathering
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.frozen import load_frozen
from finecut.trainer.rewards.answer import Answer, Unscored
from finecut.trainer.stages.stop_token import after_answer

_FIELD = "rewards.model"


def load_scorer(
    path: Path,
    policy_tokenizer: Path,
    training: TrainingConfig,
    precision: Precision,
    devices: Devices,
    row_tokens: int,
) -> ModelScorer:
    """The scorer of a reward model's folder. Collective.

    Raises UserError where it is no reward model, or has another vocabulary than the policy: the tokens that were
    sampled are scored as they are.

    Args:
      policy_tokenizer: Folder of the policy's tokenizer.
      row_tokens: Of a row; at least those of the longest prompt with its answer.
    """
    source = locate_model(path)
    head = head_of(source)
    if head is None or not head.is_scalar:
        raise UserError(f"{_FIELD}: {path} has no scalar head; use the artifact of a reward_model stage")
    config = DecoderConfig.from_folder(source.base)
    own, policys = (tokenization.load(folder, needs_template=False) for folder in (source.tokenizer, policy_tokenizer))
    if tokenization.vocabulary_fingerprint(own) != tokenization.vocabulary_fingerprint(policys):
        raise UserError(
            f"{_FIELD}: {path} was trained with another tokenizer than {policy_tokenizer} has; train it from a model of"
            " the policy's family"
        )
    if row_tokens > config.max_positions:
        raise UserError(
            f"{_FIELD}: {path} has {config.max_positions:,} positions, and a prompt with its answer may have"
            f" {row_tokens:,} tokens; lower rollout.max_new_tokens or packing.block_size"
        )
    model = load_frozen(source, config, training, precision, devices, head)
    return ModelScorer(model, after_answer(own), row_tokens, training.micro_blocks, devices)


class ModelScorer:
    """Reads the head at the last token of the prompt with the answer, completed as in the data it was trained on."""

    def __init__(
        self, model: Decoder, after_answer: Sequence[int], row_tokens: int, micro_rows: int, devices: Devices
    ) -> None:
        """`after_answer`: what the chat template writes after an answer, from the end of its turn on."""
        self._model = model
        self._after_answer = tuple(after_answer)
        self._row_tokens = row_tokens
        self._micro_rows = micro_rows
        self._devices = devices

    @torch.no_grad()
    def score(self, answers: Sequence[Answer]) -> list[float | Unscored]:
        """Of this rank's answers. Collective; ranks may have different numbers of them, or none."""
        texts = [self._tokens(answer) for answer in answers]
        fits = [number for number, text in enumerate(texts) if len(text) <= self._row_tokens]
        rows = [
            [fits[place] for place in row]
            for row in best_fit_decreasing([len(texts[number]) for number in fits], self._row_tokens, seed=0)
        ]
        found: list[float | Unscored] = [
            Unscored(f"it has {len(text):,} tokens with its prompt, more than {self._row_tokens:,}") for text in texts
        ]
        num_batches = math.ceil(self._devices.max(len(rows)) / self._micro_rows)
        for batch in range(num_batches):
            own = rows[batch * self._micro_rows : (batch + 1) * self._micro_rows]
            packed = _Rows.of(own, texts, self._micro_rows, self._row_tokens)
            rewards_BL = self._model(*packed.inputs(self._devices.device)).cpu()
            for number, row, end in packed.ends:
                value = float(rewards_BL[row, end])
                found[number] = value if math.isfinite(value) else Unscored(f"the reward model gave {value}")
        gathering.reshard(self._model)
        return found

    def close(self) -> None:
        """Nothing runs."""

    def _tokens(self, answer: Answer) -> tuple[int, ...]:
        """The policy never samples what the template writes after the end of a turn, such as a line break."""
        tail = self._after_answer[1:] if answer.answer_ids[-1:] == self._after_answer[:1] else ()
        return answer.prompt_ids + answer.answer_ids + tail


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Texts side by side; a row without any holds one token, so that every rank computes something."""

    input_ids_BL: np.ndarray
    position_ids_BL: np.ndarray
    document_ids_BL: np.ndarray
    # Of each text: its number, its row, and the place of its last token.
    ends: list[tuple[int, int, int]]

    @staticmethod
    def of(rows: Sequence[Sequence[int]], texts: Sequence[tuple[int, ...]], num_rows: int, length: int) -> _Rows:
        shape = (num_rows, length)
        filled = _Rows(np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1, np.int64), [])
        filled.document_ids_BL[:, 0] = 0
        for row, numbers in enumerate(rows):
            begin = 0
            for document, number in enumerate(numbers):
                end = begin + len(texts[number])
                filled.input_ids_BL[row, begin:end] = texts[number]
                filled.position_ids_BL[row, begin:end] = np.arange(end - begin)
                filled.document_ids_BL[row, begin:end] = document
                filled.ends.append((number, row, end - 1))
                begin = end
        return filled

    def inputs(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """The first arguments of a decoder."""
        arrays = (self.input_ids_BL, self.position_ids_BL, self.document_ids_BL)
        return tuple(torch.from_numpy(array).to(device) for array in arrays)
