"""Answers of a model in vLLM, and the text that they are."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finecut.trainer.evaluate.config import Sampling
from finecut.trainer.models.source import ModelSource, locate_model
from finecut.trainer.serving.offline import Decoding, OfflineConfig, OfflineModel, load
from finecut.trainer.stages import stop_token
from finecut.trainer.stages.samples import encode, load_tokenizer


@dataclasses.dataclass(frozen=True)
class AskedModel:
    """A model that is loaded in vLLM, with its tokenizer. A user's task is given one.

    `tokenizer` is that of `transformers`.
    """

    tokenizer: Any
    engine: OfflineModel
    stop_token_ids: tuple[int, ...]
    seed: int

    def answer(self, prompts: Sequence[str], max_new_tokens: int = 256, temperature: float = 0.0) -> list[str]:
        """The answer to each user's message, asked through the chat template."""
        ids = [encode(self.tokenizer, prompt)["input_ids"][0].tolist() for prompt in prompts]
        sampling = Sampling(max_new_tokens, temperature, self.seed)
        return [self.text(answer) for answer in self.answer_ids(ids, sampling)]

    def answer_ids(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[tuple[int, ...]]:
        """The answer to each prompt in token ids, without the stop token."""
        decoding = [
            Decoding(sampling.max_new_tokens, sampling.temperature, sampling.seed + number, self.stop_token_ids)
            for number in range(len(prompts))
        ]
        answers = self.engine.answer(prompts, decoding)
        return [found.token_ids[:-1] if found.is_stopped else found.token_ids for found in answers]

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens and outer white space."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()


@contextlib.contextmanager
def asked(folder: Path, tensor_parallel_size: int, seed: int) -> Iterator[AskedModel]:
    """The model of a folder, or of an adapter's, in vLLM. Raises UserError where there is none, or vLLM refuses it."""
    source = locate_model(folder)
    tokenizer = load_tokenizer(source.tokenizer)
    config = OfflineConfig(source.base, source.adapter, tensor_parallel_size=tensor_parallel_size)
    with load(config) as engine:
        yield AskedModel(tokenizer, engine, stops_of(source, tokenizer), seed)


def stops_of(source: ModelSource, tokenizer: Any) -> tuple[int, ...]:
    """Where an answer stops: as the model's folder says, and at the chat template's end of turn."""
    end = stop_token.end_of_turn(tokenizer)
    return tuple(dict.fromkeys([*stop_token.stop_tokens(source.base), *([] if end is None else [end])]))
