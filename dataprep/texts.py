"""Plain text for continued pretraining: every token counts but the first, which nothing predicts."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from finecut.dataprep.documents import Document
from finecut.dataprep.encoding import Encoder
from finecut.dataprep.messages import check_text, kind
from finecut.dataprep.records import BadRecord, Record, RecordError
from finecut.dataprep.schemas import missing
from finecut.proto.config import UserError


@dataclass(frozen=True)
class Text:
    """One document as it was read; never blank."""

    source: str
    place: str
    text: str


def parse(record: Record, text_field: str) -> Text:
    """Raises RecordError."""
    content = record.content
    if not isinstance(content, dict):
        raise RecordError(f"a {kind(content)} where an object with the field {text_field!r} is expected")
    if text_field not in content:
        raise missing(content, text_field)
    text = check_text(content[text_field], text_field)
    if not text.strip():
        raise RecordError(f"{text_field}: the text is empty")
    return Text(record.source, record.place, text)


class TextTokenizer:
    """Turns texts into documents. Raises UserError where the tokenizer has no token that ends a document."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        if tokenizer.eos_token_id is None:
            raise UserError(
                "tokenization.tokenizer: it has no end-of-sequence token, which ends each text; set eos_token in its "
                "tokenizer_config.json"
            )
        self._end = tokenizer.eos_token_id
        # What the tokenizer puts around a text, such as a token that begins it, is what the model was pretrained with.
        self._encoder = Encoder(tokenizer, adds_tokens=True)
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        # An expression that never matches, where there is no special token.
        self._special_text = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")

    def documents(self, texts: Sequence[Text]) -> list[Document | BadRecord]:
        """One result a text, in order."""
        bad = {number: bad for number, text in enumerate(texts) if (bad := self._refuse(text))}
        encoded = iter(self._encoder.encode([text.text for number, text in enumerate(texts) if number not in bad]))
        return [bad[number] if number in bad else self._document(next(encoded)) for number in range(len(texts))]

    def _refuse(self, text: Text) -> BadRecord | None:
        found = self._special_text.search(text.text)
        return found and BadRecord(
            text.source, text.place, f"the text holds the special token {found.group()!r}; remove it"
        )

    def _document(self, ids_T: np.ndarray) -> Document:
        if ids_T[-1:].tolist() != [self._end]:
            ids_T = np.append(ids_T, np.int32(self._end))
        mask_T: np.ndarray = np.ones(len(ids_T), dtype=bool)
        mask_T[0] = False
        return Document(ids_T, mask_T)
