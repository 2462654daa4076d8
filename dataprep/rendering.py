"""From samples to documents: conversations through the chat template and the masker, texts as they are."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document
from finecut.dataprep.masking import Masker
from finecut.dataprep.parsing import Sample
from finecut.dataprep.records import BadRecord
from finecut.dataprep.texts import Text, TextTokenizer


class Renderer:
    """Raises UserError at once where the tokenizer cannot do what the sources need; see Masker and TextTokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, conversations: bool, texts: bool, last_turn_only: bool):
        self._masker = Masker(tokenizer, last_turn_only) if conversations else None
        self._texts = TextTokenizer(tokenizer) if texts else None

    def documents(self, samples: Sequence[Sample]) -> list[tuple[Document, ...] | BadRecord]:
        """One result a sample, in order; its last document is the whole of it.

        Raises MaskError where a mask would be wrong.
        """
        conversations = [sample for sample in samples if isinstance(sample, Conversation)]
        texts = [sample for sample in samples if isinstance(sample, Text)]
        masked = iter(self._masker.documents(conversations) if self._masker else ())
        plain = iter(map(_as_one, self._texts.documents(texts)) if self._texts else ())
        return [next(masked if isinstance(sample, Conversation) else plain) for sample in samples]


def _as_one(result: Document | BadRecord) -> tuple[Document, ...] | BadRecord:
    return result if isinstance(result, BadRecord) else (result,)
