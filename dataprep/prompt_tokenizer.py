"""Prompts into token ids, up to where the model is asked for its answer."""

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.chat_text import ChatText
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document, Task
from finecut.dataprep.encoding import Encoder
from finecut.dataprep.prompts import Prompt
from finecut.dataprep.records import BadRecord, RecordError


class PromptTokenizer:
    """Turns prompts into documents in which nothing is a target."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        # The template has written the special tokens; the tokenizer must add none of its own.
        self._encoder = Encoder(tokenizer)
        self._text = ChatText(tokenizer, last_turn_only=True)

    def documents(self, prompts: Sequence[Prompt]) -> list[Document | BadRecord]:
        """One result a prompt, in order."""
        texts: list[str | BadRecord] = [self._render(prompt) for prompt in prompts]
        good = [text for text in texts if isinstance(text, str)]
        ids = iter(self._encoder.encode(good))
        return [
            text if isinstance(text, BadRecord) else _document(prompt, next(ids))
            for prompt, text in zip(prompts, texts, strict=True)
        ]

    def _render(self, prompt: Prompt) -> str | BadRecord:
        try:
            return self._text.prompt(Conversation(prompt.source, prompt.place, prompt.messages, prompt.tools))
        except RecordError as error:
            return BadRecord(prompt.source, prompt.place, str(error))


def _document(prompt: Prompt, ids_T: np.ndarray) -> Document:
    task = Task(prompt.source, prompt.reference, prompt.verifier)
    return Document(ids_T, np.zeros(len(ids_T), bool), task=task)
