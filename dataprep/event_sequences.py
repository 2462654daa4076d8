"""Histories as ids of their own, which follow the text vocabulary: id n is the token len(tokenizer) + n."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finecut.dataprep.config import EventSequenceConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.messages import kind
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import missing


@dataclass(frozen=True)
class EventSequence:
    """One member's ids, oldest first; at least two."""

    source: str
    place: str
    ids: np.ndarray  # int32, from 0


def parse(record: Record, config: EventSequenceConfig) -> EventSequence:
    """Raises RecordError."""
    content, field, count = record.content, config.ids_field, config.semantic_id_count
    if not isinstance(content, dict):
        raise RecordError(f"a {kind(content)} where an object with the field {field!r} is expected")
    if field not in content:
        raise missing(content, field)
    ids = content[field]
    if not isinstance(ids, list):
        raise RecordError(f"{field}: a {kind(ids)} where a list of ids is expected")
    if len(ids) < 2:
        raise RecordError(f"{field}: {len(ids)} ids; a sequence needs 2, the second is the first that is predicted")
    for number, found in enumerate(ids):
        if isinstance(found, bool) or not isinstance(found, int):
            raise RecordError(f"{field}[{number}]: a {kind(found)} where an id, a whole number, is expected")
        if not 0 <= found < count:
            raise RecordError(
                f"{field}[{number}]: {found!r:.40} is out of range; ids are from 0 to {count - 1} (semantic_id_count)"
            )
    return EventSequence(record.source, record.place, np.array(ids, np.int32))


def documents(sequences: Sequence[EventSequence], text_vocabulary_size: int) -> list[Document]:
    """One document a sequence; every id counts but the first, which nothing predicts."""
    return [
        Document(sequence.ids + np.int32(text_vocabulary_size), np.arange(len(sequence.ids)) > 0)
        for sequence in sequences
    ]
