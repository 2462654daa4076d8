r"""From one segment to a file of tokenized documents: what many processes do at once.

    records -> samples -> documents (ids and loss mask) -> file
          \-> bad records and records that the filter leaves out: listed and counted

It depends on the segment and the config alone, so that it does not matter where it runs or how often.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from finecut.dataprep import long_documents, readers, tokenization
from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.filtering import Filter
from finecut.dataprep.parsing import Sample, parser_of
from finecut.dataprep.problems import MAX_LISTED
from finecut.dataprep.records import BadRecord, Record, RecordError
from finecut.dataprep.rendering import Renderer
from finecut.dataprep.segment_files import SegmentWriter
from finecut.dataprep.segments import Outcome, Segment

# Records rendered and tokenized together: enough to be fast, few enough to show progress; with long ones, fewer.
BATCH_RECORDS = 512
BATCH_BYTES = 8 << 20

Progress = Callable[[Outcome], None]


class SegmentWorker:
    """Holds what all segments need. Raises UserError where the tokenizer or the config cannot be used."""

    def __init__(self, config: PrepareConfig):
        self.config = config
        # With a template where the sources need one.
        self.tokenizer = tokenization.load(
            config.tokenizer, config.chat_template_file, config.needs_chat_template, config.added_tokens
        )
        self._renderer = Renderer(self.tokenizer, config)
        self._parsers = {source.name: parser_of(source.record) for source in config.sources}
        # Duplicates are known only among all segments.
        self._filter = dataclasses.replace(config.filter, remove_duplicates=False, near_similarity=None)

    def run(self, segment: Segment, folder: Path, progress: Progress) -> Outcome:
        """Writes the segment's documents into the folder, and calls `progress` after each batch.

        Raises UserError where the file is damaged or a mask would be wrong.
        """
        outcome = Outcome()
        wanted = Filter(self._filter)
        with SegmentWriter(folder, segment.number) as writer:
            records = islice(readers.read(segment.source, segment.path, segment.span), segment.max_records)
            for batch in _batches(records):
                outcome.num_records += len(batch)
                samples = self._parse(batch, wanted, outcome)
                # A stage that fails anyway still names all bad records, but need not tokenize the others.
                if outcome.num_bad <= self.config.max_bad_records:
                    writer.add(list(self._documents(samples, wanted, outcome)))
                progress(outcome)
            for (_, condition), number in wanted.removed.items():
                outcome.removed[condition] += number
            return writer.finish(outcome)

    def _parse(self, batch: list[Record | BadRecord], wanted: Filter, outcome: Outcome) -> list[Sample]:
        samples = []
        for record in batch:
            if isinstance(record, BadRecord):
                _add_bad(outcome, record)
                continue
            try:
                if wanted.keeps_record(record):
                    samples.append(self._parsers[record.source](record))
            except RecordError as error:
                _add_bad(outcome, BadRecord(record.source, record.place, str(error)))
        return samples

    def _documents(
        self, samples: list[Sample], wanted: Filter, outcome: Outcome
    ) -> Iterator[tuple[str, Sequence[Document]]]:
        for sample, result in zip(samples, self._renderer.documents(samples), strict=True):
            if isinstance(result, BadRecord):
                _add_bad(outcome, result)
                continue
            # The last document is the whole record; those before it are turns that its template rewrites.
            if not wanted.keeps_document(sample.source, result[-1]):
                continue
            try:
                # Cut where documents are put together; here only to fail early.
                for document in result:
                    long_documents.fit(document, self.config.packing)
            except ValueError as error:
                _add_bad(outcome, BadRecord(sample.source, sample.place, str(error)))
                continue
            outcome.num_documents += len(result)
            outcome.num_tokens += sum(map(len, result))
            yield sample.place, result


def _add_bad(outcome: Outcome, bad: BadRecord) -> None:
    outcome.num_bad += 1
    if len(outcome.bad) < MAX_LISTED:
        outcome.bad.append(bad)


def _batches(records: Iterator[Record | BadRecord]) -> Iterator[list[Record | BadRecord]]:
    batch: list[Record | BadRecord] = []
    num_bytes = 0
    for record in records:
        batch.append(record)
        num_bytes += record.num_bytes if isinstance(record, Record) else 0
        if len(batch) >= BATCH_RECORDS or num_bytes >= BATCH_BYTES:
            yield batch
            batch, num_bytes = [], 0
    if batch:
        yield batch
