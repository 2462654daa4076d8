"""Answers of an exported model, as whoever uses it with `transformers` gets them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from finecut.proto.config import UserError
from finecut.trainer.models.reference import quiet

# Held to our decoder beside the job's own prompts, so that there is always something.
_CHECKED_TEXTS = (
    "What is the capital of France?",
    "Write one sentence about the sea, then count from one to ten.",
    "def add(a, b):\n    return a + b\n",
)
_CHECKED_ROWS = 32  # at the end of the vocabulary
_MAX_CHECKED_TOKENS = 256  # of one prompt; enough to show a fault, and logits stay small


def load_tokenizer(folder: Path) -> Any:
    """The model's tokenizer; unlike data preparation's, it may lack a chat template. Raises UserError."""
    try:
        with quiet():
            return transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: AutoTokenizer cannot load its tokenizer: {error}") from None


def checked_documents(tokenizer: Any, prompts: Sequence[str], vocabulary_size: int) -> list[Tensor]:
    """Token ids of prompts, as they are sent to the model, on which logits are compared.

    The last of them is the end of the vocabulary, where rows that training added stand: the ids that are lost first.
    """
    encoded = (encode(tokenizer, prompt)["input_ids"][0] for prompt in (*prompts, *_CHECKED_TEXTS))
    last = torch.arange(max(0, vocabulary_size - _CHECKED_ROWS), vocabulary_size)
    return [ids[:_MAX_CHECKED_TOKENS] for ids in (*encoded, last) if len(ids)]


def encode(tokenizer: Any, prompt: str) -> Any:
    """A user's message up to where the model answers; the bare text for a tokenizer without a chat template."""
    if not tokenizer.chat_template:
        return tokenizer(prompt, return_tensors="pt")
    conversation = [{"role": "user", "content": prompt}]
    return tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )


@torch.no_grad()
def answer(model: Any, tokenizer: Any, prompt: str, max_new_tokens: int, stop_tokens: Sequence[int]) -> str:
    """The greedy answer of a `transformers` model."""
    inputs = encode(tokenizer, prompt).to(model.device)
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    with quiet():
        output = model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            eos_token_id=list(stop_tokens) or None,
            pad_token_id=padding,
        )
    return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
