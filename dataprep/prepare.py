r"""Data preparation from top to bottom.

    files -> records -> conversations or texts -> documents (ids and loss mask) -> splits -> blocks -> shards
                \-> bad records, all reported together; records that the filter does not want, counted

Held in memory: a batch of records, a packing window for each split, where evaluation has a bound, its documents, and
where duplicates are removed, a digest of each document.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from finecut.dataprep import long_documents, readers, storage, tokenization
from finecut.dataprep.config import PrepareConfig, SourceConfig, TextConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.filtering import Filter
from finecut.dataprep.output import Output
from finecut.dataprep.parsing import Parser, Sample, parser_of
from finecut.dataprep.problems import Problems
from finecut.dataprep.records import BadRecord, Record, RecordError
from finecut.dataprep.rendering import Renderer
from finecut.dataprep.split import content_digest
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run.events import EventLog

# Records rendered and tokenized together: enough for the tokenizer's threads, few enough to show progress.
BATCH_RECORDS = 512


def prepare(config: PrepareConfig, folder: Path, log: EventLog) -> artifact_pb2.Artifact:
    """Writes shards into `folder` and returns the manifest's content and fingerprints, without files.

    Raises UserError with every bad record where there are more than the budget allows, and where a split is empty.
    """
    inputs = _find_inputs(config)
    has_texts = any(isinstance(source.record, TextConfig) for source in config.sources)
    has_conversations = not all(isinstance(source.record, TextConfig) for source in config.sources)
    tokenizer = tokenization.load(config.tokenizer, config.chat_template_file, needs_template=has_conversations)
    renderer = Renderer(tokenizer, has_conversations, has_texts, config.last_turn_only)
    parsers = {source.name: parser_of(source.record) for source in config.sources}
    wanted = Filter(config.filter)
    problems = Problems(config.max_bad_records, config.max_truncated_fraction)
    prepared = Output(config, folder, tokenization.padding_id(tokenizer))
    num_records: Counter[str] = Counter()
    total = sum(readers.count(source, path) for source, path in inputs)

    for batch in _batches(_read(inputs), BATCH_RECORDS):
        num_records.update(record.source for record in batch)
        samples = _parse(batch, parsers, wanted, problems)
        if not problems.hopeless:
            for sample, document in _render(samples, renderer, problems):
                if wanted.keeps_document(sample.source, document):
                    fitted = _fit(sample, document, config, problems)
                    for piece in fitted:
                        prepared.add(sample.source, content_digest(fitted[0]), piece)
        _show(log, num_records.total(), total, prepared, problems)

    problems.check(prepared.num_documents)
    splits = prepared.close()
    # Whoever trains on the data takes over the tokenizer, with the chat template it was made with.
    tokenizer.save_pretrained(folder / tokenization.FOLDER)
    _check_not_empty(config, splits, num_records.total(), wanted)
    manifest = artifact_pb2.Artifact()
    manifest.fingerprints.tokenizer = tokenization.fingerprint(tokenizer)
    manifest.fingerprints.data = fingerprint_of_inputs(config)
    data = manifest.data
    data.block_size = config.packing.block_size
    data.vocabulary_size = len(tokenizer)
    data.pad_token_id = tokenization.padding_id(tokenizer)
    data.packed = not config.packing.on_the_fly
    if config.packing.on_the_fly:
        data.window_documents = config.packing.window_documents
    data.splits.extend(split for split in splits if split.document_count)
    for source in config.sources:
        data.sources.add(
            name=source.name,
            record_count=num_records[source.name],
            bad_record_count=problems.bad_by_source[source.name],
            filtered_record_counts={c: n for (name, c), n in sorted(wanted.removed.items()) if name == source.name},
        )
    _summarize(log, data, problems, wanted)
    return manifest


def fingerprint_of_inputs(config: PrepareConfig) -> str:
    """SHA-256 over the fingerprint of every input file, in reading order."""
    digests = [storage.fingerprint(path) for _, path in _find_inputs(config)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _find_inputs(config: PrepareConfig) -> list[tuple[SourceConfig, storage.InputFile]]:
    """All files of all sources in reading order; all paths that are wrong are reported together."""
    inputs: list[tuple[SourceConfig, storage.InputFile]] = []
    names = Counter(source.name for source in config.sources)
    complaints = [f"sources: {n} are named {name!r}; give each a name" for name, n in names.items() if n > 1]
    for source in config.sources:
        try:
            inputs += [(source, path) for path in readers.files_of(source)]
        except UserError as error:
            complaints.append(str(error))
    if complaints:
        raise UserError("\n".join(complaints))
    return inputs


def _read(inputs: list[tuple[SourceConfig, storage.InputFile]]) -> Iterator[Record | BadRecord]:
    for source, path in inputs:
        yield from readers.read(source, path)


def _batches(records: Iterator[Record | BadRecord], size: int) -> Iterator[list[Record | BadRecord]]:
    while batch := list(islice(records, size)):
        yield batch


def _parse(
    batch: list[Record | BadRecord], parsers: dict[str, Parser], wanted: Filter, problems: Problems
) -> list[Sample]:
    samples = []
    for record in batch:
        if isinstance(record, BadRecord):
            problems.add(record)
            continue
        try:
            if wanted.keeps_record(record):
                samples.append(parsers[record.source](record))
        except RecordError as error:
            problems.add(BadRecord(record.source, record.place, str(error)))
    return samples


def _render(samples: list[Sample], renderer: Renderer, problems: Problems) -> Iterator[tuple[Sample, Document]]:
    for sample, result in zip(samples, renderer.documents(samples), strict=True):
        if isinstance(result, BadRecord):
            problems.add(result)
        else:
            yield sample, result


def _fit(sample: Sample, document: Document, config: PrepareConfig, problems: Problems) -> Sequence[Document]:
    """The document, or what may be made of it where it is longer than a block; nothing where it cannot be used."""
    try:
        fitted = long_documents.fit(document, config.packing)
    except ValueError as error:
        problems.add(BadRecord(sample.source, sample.place, str(error)))
        return []
    if fitted[0].truncated:
        problems.add_truncated(sample.place, len(document))
    return fitted


def _check_not_empty(
    config: PrepareConfig, splits: list[artifact_pb2.DataArtifact.Split], num_records: int, wanted: Filter
) -> None:
    train, evaluation = splits
    if not train.document_count + evaluation.document_count:
        what = "every record is bad" if num_records else "there are no records"
        if wanted.removed:
            what = f"no record is left ({wanted.summary()})"
        raise UserError(f"data_prep.sources: {what} in {', '.join(p for s in config.sources for p in s.paths)}")
    if not train.document_count:
        raise UserError(
            f"data_prep.evaluation.fraction: {config.evaluation_fraction:g} holds out all "
            f"{evaluation.document_count:,} documents and leaves none to train on; lower it or give more records"
        )
    if config.evaluation_fraction and not evaluation.document_count:
        raise UserError(
            f"data_prep.evaluation: none of the {train.document_count:,} documents is held out; "
            "raise fraction or max_documents, or unset evaluation"
        )


def _show(log: EventLog, num_records: int, total: int, prepared: Output, problems: Problems) -> None:
    values = {
        "documents": float(prepared.num_documents),
        "tokens": float(prepared.num_tokens),
        "bad_records": float(problems.bad_by_source.total()),
    }
    log.step(num_records, max(total, num_records), values)


def _summarize(log: EventLog, data: artifact_pb2.DataArtifact, problems: Problems, wanted: Filter) -> None:
    for split in data.splits:
        cut = f", {split.truncated_document_count:,} cut" if split.truncated_document_count else ""
        if split.later_piece_count:
            cut += f", {split.later_piece_count:,} of them later pieces of split ones"
        log.message(
            f"{split.name}: {split.document_count:,} documents{cut}, {split.token_count:,} tokens, "
            f"{split.trained_token_count / split.token_count:.1%} trained; {_describe_blocks(split, data)}"
        )
    if wanted.removed:
        log.message(wanted.summary())
    if problems.listed:
        log.message(f"{problems.bad_by_source.total():,} bad records left out\n{problems.report()}")


def _describe_blocks(split: artifact_pb2.DataArtifact.Split, data: artifact_pb2.DataArtifact) -> str:
    if not data.packed:
        return f"the trainer packs them into blocks of {data.block_size:,} tokens"
    filled = split.token_count / (split.block_count * data.block_size)
    return f"{split.block_count:,} blocks of {data.block_size:,} tokens, {filled:.1%} filled"
