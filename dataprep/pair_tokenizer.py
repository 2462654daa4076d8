"""Preference pairs into documents: the prompt with the chosen answer, then the prompt with the rejected one.

Both take the way of a conversation whose last turn alone is trained, so template, mask and checks are the same.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from finecut.dataprep import pairs
from finecut.dataprep.documents import Document
from finecut.dataprep.masking import Masker
from finecut.dataprep.preferences import Preference
from finecut.dataprep.records import BadRecord


class PairTokenizer:
    """Turns pairs into documents. Raises MaskError as Masker does."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._masker = Masker(tokenizer, last_turn_only=True)

    def documents(self, preferences: Sequence[Preference]) -> list[Document | BadRecord]:
        """One result a pair, in order."""
        conversations = [side for preference in preferences for side in preference.conversations()]
        sides = self._masker.documents(conversations)
        return [
            self._join(preference, chosen, rejected)
            for preference, chosen, rejected in zip(preferences, sides[::2], sides[1::2], strict=True)
        ]

    @staticmethod
    def _join(preference: Preference, *sides: tuple[Document, ...] | BadRecord) -> Document | BadRecord:
        for name, side in zip(("chosen", "rejected"), sides, strict=True):
            if isinstance(side, BadRecord):
                return replace(side, reason=f"{name}: {side.reason}")
        # Where only the last turn is trained, a conversation is one document.
        (chosen,), (rejected,) = (side for side in sides if isinstance(side, tuple))
        if reason := pairs.disagreement(chosen, rejected):
            return BadRecord(preference.source, preference.place, reason)
        return pairs.join(chosen, rejected, preference.margin)
