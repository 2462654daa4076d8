r"""Data preparation from top to bottom.

    files -> segments -> (many processes) tokenized documents \
                                      \-> bad records         -> (one process) duplicates, splits, blocks -> shards

The first half is that of segment_work.py, and its files outlive a kill; the second half is here, at the same time, and
sees segments in the order of the input: neither the number of processes nor a kill changes a byte of the result.

Held in memory: a batch of records in each process; here a packing window for each split, where evaluation has a bound,
its documents, and where duplicates are removed, a digest of each document, or a signature where near ones are.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

from finecut.dataprep import (
    long_documents,
    segment_files,
    segment_runner,
    segments,
    shard_files,
    storage,
    tokenization,
)
from finecut.dataprep.config import Kind, PrepareConfig
from finecut.dataprep.documents import Document
from finecut.dataprep.filtering import Filter
from finecut.dataprep.output import Output
from finecut.dataprep.problems import Problems
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import Outcome, Plan, Segment
from finecut.dataprep.split import content_digest
from finecut.proto import artifact_pb2
from finecut.proto.config import UserError
from finecut.proto.run.events import EventLog


def prepare(worker: SegmentWorker, plan: Plan, folder: Path, work: Path, log: EventLog) -> artifact_pb2.Artifact:
    """Writes shards into `folder` and returns the manifest's content and fingerprints, without files.

    `work` holds finished segments, those of an earlier try too. Raises UserError with every bad record where there
    are more than the budget allows, and where a split is empty.
    """
    config, tokenizer = worker.config, worker.tokenizer
    problems = Problems(config.max_bad_records, config.max_truncated_fraction)
    wanted = Filter(config.filter)
    num_records: Counter[str] = Counter()
    prepared = Output(config, folder, tokenization.padding_id(tokenizer))
    show = partial(_show, log, plan.num_records)
    for segment, outcome in run_segments(worker, plan, work, show, problems, wanted):
        num_records[segment.source.name] += outcome.num_records
        for place, documents in segment_files.read(work, segment.number):
            _put(prepared, segment.source.name, place, documents, config, wanted, problems)
    problems.check_truncated(prepared.num_documents)
    splits = prepared.close()
    # Whoever trains on the data takes over the tokenizer, with the chat template it was made with.
    tokenizer.save_pretrained(folder / tokenization.FOLDER)
    _check_not_empty(config, splits, num_records.total(), wanted)
    manifest = artifact_pb2.Artifact()
    manifest.fingerprints.tokenizer = tokenization.fingerprint(tokenizer)
    manifest.fingerprints.data = plan.fingerprint
    data = manifest.data
    data.block_size = config.packing.block_size
    data.kind = config.kind.value
    data.vocabulary_size = len(tokenizer) + config.semantic_id_count
    data.semantic_id_count = config.semantic_id_count
    data.pad_token_id = tokenization.padding_id(tokenizer)
    data.packed = not config.packing.on_the_fly and config.kind is not Kind.PROMPTS
    if config.packing.on_the_fly:
        data.window_documents = config.packing.window_documents
    data.splits.extend(split for split in splits if split.document_count)
    for source in config.sources:
        data.sources.add(
            name=source.name,
            record_count=num_records[source.name],
            bad_record_count=problems.bad_by_source[source.name],
            filtered_record_counts={c: n for (name, c), n in sorted(wanted.removed.items()) if name == source.name},
            **dict([source.mixing] if source.mixing else []),
        )
    _summarize(log, data, problems, wanted)
    return manifest


def fingerprint_of_inputs(config: PrepareConfig) -> str:
    """As Plan.fingerprint, without looking for places to cut."""
    return segments.combine_fingerprints([storage.fingerprint(path) for _, path in segments.find_inputs(config)])


def run_segments(
    worker: SegmentWorker,
    plan: Plan,
    work: Path,
    show: segment_runner.ShowProgress,
    problems: Problems,
    wanted: Filter,
) -> Iterator[tuple[Segment, Outcome]]:
    """Has every segment written, and yields each, in order, once it is.

    Raises UserError, without reading on, once more records are bad than the budget allows.
    """
    num_records = 0
    with closing(segment_runner.run(worker, plan.segments, work, show)) as outcomes:
        for segment, outcome in outcomes:
            source = segment.source.name
            num_records += outcome.num_records
            problems.add(source, outcome.num_bad, outcome.bad)
            wanted.removed.update({(source, condition): number for condition, number in outcome.removed.items()})
            if problems.hopeless and segment is not plan.segments[-1]:
                problems.check_bad(f" in the first {num_records:,} records, where reading stopped")
            yield segment, outcome
    problems.check_bad()


def _put(
    prepared: Output,
    source: str,
    place: str,
    documents: Sequence[Document],
    config: PrepareConfig,
    wanted: Filter,
    problems: Problems,
) -> None:
    """Sends the documents of one record on, unless it is a duplicate; long ones are cut as declared."""
    # The last document is the whole record; those before it are turns that its template rewrites.
    if not wanted.keeps_document(source, documents[-1]):
        return
    fitted = [long_documents.fit(document, config.packing) for document in documents]
    for document, pieces in zip(documents, fitted, strict=True):
        if pieces[0].truncated:
            problems.add_truncated(place, len(document))
    digest = content_digest(fitted[0][0])
    for pieces in fitted:
        for piece in pieces:
            prepared.add(source, digest, piece)


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


def _show(log: EventLog, total: int, outcomes: Sequence[Outcome]) -> None:
    num_records = sum(outcome.num_records for outcome in outcomes)
    values = {
        "documents": float(sum(outcome.num_documents for outcome in outcomes)),
        "tokens": float(sum(outcome.num_tokens for outcome in outcomes)),
        "bad_records": float(sum(outcome.num_bad for outcome in outcomes)),
    }
    if num_records:
        log.step(num_records, max(total, num_records), values)


def _summarize(log: EventLog, data: artifact_pb2.DataArtifact, problems: Problems, wanted: Filter) -> None:
    for split in data.splits:
        cut = f", {split.truncated_document_count:,} cut" if split.truncated_document_count else ""
        if split.later_piece_count:
            cut += f", {split.later_piece_count:,} of them later pieces of split ones"
        if split.earlier_turn_document_count:
            documents, tokens = split.earlier_turn_document_count, split.earlier_turn_token_count
            cut += f", {documents:,} of them ({tokens:,} tokens) for turns that the template rewrites in history"
        log.message(
            f"{split.name}: {shard_files.count_in_words(split, data)}{cut}, {split.token_count:,} tokens, "
            f"{split.trained_token_count / split.token_count:.1%} trained; {_describe_blocks(split, data)}"
        )
    if wanted.removed:
        log.message(wanted.summary())
    if problems.listed:
        log.message(f"{problems.bad_by_source.total():,} bad records left out\n{problems.report()}")


def _describe_blocks(split: artifact_pb2.DataArtifact.Split, data: artifact_pb2.DataArtifact) -> str:
    if data.kind == artifact_pb2.DataArtifact.PROMPTS:
        return "each a row for rollouts"
    if not data.packed:
        return f"the trainer packs them into blocks of {data.block_size:,} tokens"
    filled = split.token_count / (split.block_count * data.block_size)
    return f"{split.block_count:,} blocks of {data.block_size:,} tokens, {filled:.1%} filled"
