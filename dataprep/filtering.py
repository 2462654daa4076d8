"""Records that a job does not want: left out without an error, and counted by the condition that they fail."""

from collections import Counter
from typing import Any

from finecut.dataprep import sandbox
from finecut.dataprep.config import FilterConfig
from finecut.dataprep.digests import DigestSet
from finecut.dataprep.documents import Document
from finecut.dataprep.messages import kind
from finecut.dataprep.near_duplicates import NearDuplicates
from finecut.dataprep.records import Record, RecordError
from finecut.dataprep.schemas import missing


class Filter:
    """Conditions are asked in the order of FilterConfig's fields; a record counts for the first that it fails.

    Attributes:
      removed: Records left out, by source and by the name of the condition.
    """

    def __init__(self, config: FilterConfig):
        self._config = config
        self._condition = sandbox.condition(config.expression, "filter.expression") if config.expression else None
        self._seen = DigestSet()
        self._near = None if config.near_similarity is None else NearDuplicates(config.near_similarity)
        self.removed: Counter[tuple[str, str]] = Counter()

    def keeps_record(self, record: Record) -> bool:
        """Asks what the record's fields can tell. Raises RecordError where they do not tell it."""
        if self._condition is None and not self._config.language_field:
            return True
        content = record.content
        if not isinstance(content, dict):
            raise RecordError(f"a {kind(content)} where an object with fields for the filter is expected")
        if self._condition is not None and not self._condition({**content, "record": content}):
            return self._remove(record.source, "expression")
        if self._config.language_field and not self._speaks(content):
            return self._remove(record.source, "languages")
        return True

    def keeps_document(self, source: str, document: Document) -> bool:
        """Asks for length, of both documents of a pair, and for duplicates. The first of several is kept."""
        if min(document.lengths) < self._config.min_tokens:
            return self._remove(source, "min_tokens")
        if self._config.max_tokens is not None and max(document.lengths) > self._config.max_tokens:
            return self._remove(source, "max_tokens")
        if self._config.remove_duplicates and not self._seen.add(document.digest()):
            return self._remove(source, "duplicates")
        if self._near is not None:
            assert document.signature is not None, "the document has no signature"
            if not self._near.add(document.signature):
                return self._remove(source, "near_duplicates")
        return True

    def summary(self) -> str:
        """One line for the log; empty where nothing was left out."""
        by_condition: Counter[str] = Counter()
        for (_, condition), number in self.removed.items():
            by_condition[condition] += number
        parts = (f"{number:,} by {condition}" for condition, number in sorted(by_condition.items()))
        return f"filter left out {', '.join(parts)}" if by_condition else ""

    def _speaks(self, content: dict[str, Any]) -> bool:
        """RFC 4647's basic filtering: "en" keeps "en", "EN" and "en-GB"."""
        field = self._config.language_field or ""
        if field not in content:
            raise missing(content, field)
        tag = content[field]
        if not isinstance(tag, str):
            raise RecordError(f"{field}: a {kind(tag)} where a language tag is expected")
        return any(f"{tag}-".lower().startswith(f"{language}-".lower()) for language in self._config.languages)

    def _remove(self, source: str, condition: str) -> bool:
        self.removed[source, condition] += 1
        return False
