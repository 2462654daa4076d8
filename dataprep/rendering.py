"""From samples to documents, each kind by its own tokenizer of turns, texts or ids."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from finecut.dataprep import event_sequences, near_duplicates
from finecut.dataprep.config import (
    EventSequenceConfig,
    PreferenceConfig,
    PrepareConfig,
    PromptConfig,
    RecordConfig,
    TextConfig,
)
from finecut.dataprep.conversations import Conversation
from finecut.dataprep.documents import Document, example_id
from finecut.dataprep.event_sequences import EventSequence
from finecut.dataprep.masking import Masker
from finecut.dataprep.pair_tokenizer import PairTokenizer
from finecut.dataprep.parsing import Sample
from finecut.dataprep.preferences import Preference
from finecut.dataprep.prompt_tokenizer import PromptTokenizer
from finecut.dataprep.prompts import Prompt
from finecut.dataprep.records import BadRecord
from finecut.dataprep.texts import Text, TextTokenizer

Documents = tuple[Document, ...]
_Tokenizer = Callable[[Sequence[Any]], Sequence[Documents | Document | BadRecord]]  # of samples of one type


class Renderer:
    """Raises UserError at once where the tokenizer cannot do what the sources need; see Masker and TextTokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: PrepareConfig):
        self._signs = config.filter.near_similarity is not None
        self._by_type: dict[type, _Tokenizer] = {}
        for source in config.sources:
            sample_type = _sample_type(source.record)
            if sample_type not in self._by_type:
                self._by_type[sample_type] = _tokenizer_of(sample_type, tokenizer, config.last_turn_only)

    def documents(self, samples: Sequence[Sample]) -> list[Documents | BadRecord]:
        """One result a sample, in order; its last document is the whole of it.

        Raises MaskError where a mask would be wrong.
        """
        results = {
            sample_type: iter(tokenize([sample for sample in samples if isinstance(sample, sample_type)]))
            for sample_type, tokenize in self._by_type.items()
        }
        return [self._finish(sample, next(results[type(sample)])) for sample in samples]

    def _finish(self, sample: Sample, result: Documents | Document | BadRecord) -> Documents | BadRecord:
        if isinstance(result, BadRecord):
            return result
        *earlier, whole = result if isinstance(result, tuple) else (result,)
        if self._signs:
            whole = replace(whole, signature=near_duplicates.signature(near_duplicates.words_of(sample)))
        return tuple(replace(document, example_id=example_id(document)) for document in (*earlier, whole))


def _sample_type(record: RecordConfig) -> type:
    types: dict[type, type] = {
        TextConfig: Text,
        PreferenceConfig: Preference,
        PromptConfig: Prompt,
        EventSequenceConfig: EventSequence,
    }
    return types.get(type(record), Conversation)


def _tokenizer_of(sample_type: type, tokenizer: PreTrainedTokenizerBase, last_turn_only: bool) -> _Tokenizer:
    if sample_type is Text:
        return TextTokenizer(tokenizer).documents
    if sample_type is Preference:
        return PairTokenizer(tokenizer).documents
    if sample_type is Prompt:
        return PromptTokenizer(tokenizer).documents
    if sample_type is EventSequence:
        return lambda sequences: event_sequences.documents(sequences, len(tokenizer))
    return Masker(tokenizer, last_turn_only).documents
