"""Finished segments on disk: a file of tokenized documents, and a note of what became of the rest, written last.

    segments/00007.arrow    rows are documents; those of one record stand together
    segments/00007.json     the Outcome, with the SHA-256 of the other file; where it is missing, nothing is finished

A row has the two arrays of a Document, its example id, the place of its record, and its other fields as JSON where they
are not the default ones.
"""

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa

from finecut.dataprep.documents import Document, Pair, Task
from finecut.dataprep.records import BadRecord
from finecut.dataprep.segments import Outcome
from finecut.proto.run import files

_SCHEMA = pa.schema(
    [
        pa.field("record", pa.int64(), nullable=False),  # number in the segment, from 0
        pa.field("place", pa.string(), nullable=False),
        pa.field("input_ids", pa.list_(pa.field("item", pa.int32(), nullable=False)), nullable=False),
        pa.field("loss_mask", pa.list_(pa.field("item", pa.bool_(), nullable=False)), nullable=False),
        pa.field("example_id", pa.int64(), nullable=False),
        pa.field("other_fields", pa.string(), nullable=False),
    ]
)
_COLUMNS = ("input_ids_T", "loss_mask_T", "example_id")
_DEFAULTS = {item.name: item.default for item in dataclasses.fields(Document) if item.name not in _COLUMNS}
# Fields that hold a record of fields themselves. Those that are arrays hold uint32.
_RECORDS: dict[str, Any] = {"pair": Pair, "task": Task}


class SegmentWriter:
    """Writes one segment's documents under a temporary name; `finish` makes them count."""

    def __init__(self, folder: Path, number: int):
        self._path = documents_path(folder, number)
        self._note = _note_path(folder, number)
        self._partial = self._path.with_name(self._path.name + ".partial")
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._sink = pa.OSFile(str(self._partial), "wb")
        self._writer = pa.ipc.new_file(self._sink, _SCHEMA)
        self._num_records = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._sink.close()

    def add(self, records: Sequence[tuple[str, Sequence[Document]]]) -> None:
        """Appends records, each with its place and its documents, as one batch."""
        rows = [(number, place, d) for number, (place, found) in enumerate(records, self._num_records) for d in found]
        self._num_records += len(records)
        if not rows:
            return
        documents = [document for _, _, document in rows]
        offsets = pa.array(np.cumsum([0, *map(len, documents)]), type=pa.int32())
        ids = np.concatenate([document.input_ids_T for document in documents]).astype(np.int32, copy=False)
        mask = np.concatenate([document.loss_mask_T for document in documents])
        columns = [
            pa.array([number for number, _, _ in rows], pa.int64()),
            pa.array([place for _, place, _ in rows], pa.string()),
            pa.ListArray.from_arrays(offsets, pa.array(ids), type=_SCHEMA.field("input_ids").type),
            pa.ListArray.from_arrays(offsets, pa.array(mask), type=_SCHEMA.field("loss_mask").type),
            pa.array([document.example_id for document in documents], pa.int64()),
            pa.array([_other_fields(document) for document in documents], pa.string()),
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))

    def finish(self, outcome: Outcome) -> Outcome:
        """Makes the documents durable, then writes the note. Returns the outcome with the checksum."""
        self._writer.close()
        self._sink.close()
        files.sync_file(self._partial)
        self._partial.replace(self._path)
        outcome = dataclasses.replace(outcome, sha256=files.sha256_of_file(self._path))
        files.write_atomically(self._note, json.dumps(vars(outcome) | {"bad": [vars(bad) for bad in outcome.bad]}))
        return outcome


def documents_path(folder: Path, number: int) -> Path:
    return folder / "segments" / f"{number:05d}.arrow"


def finished(folder: Path, number: int) -> Outcome | None:
    """What an earlier try left of a segment; None where it is missing, torn or corrupt."""
    outcome = peek(folder, number)
    try:
        whole = outcome is not None and outcome.sha256 == files.sha256_of_file(documents_path(folder, number))
    except OSError:
        return None
    return outcome if whole else None


def peek(folder: Path, number: int) -> Outcome | None:
    """The note of a segment, where there is one, whatever its documents look like."""
    try:
        values = json.loads(_note_path(folder, number).read_text(encoding="utf-8"))
        bad = [BadRecord(**fields) for fields in values["bad"]]
        return Outcome(**values | {"bad": bad, "removed": Counter(values["removed"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read(folder: Path, number: int) -> Iterator[tuple[str, list[Document]]]:
    """The records of a finished segment in order, each with its place and its documents. Memory is a batch."""
    with pa.memory_map(str(documents_path(folder, number))) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            for _, rows in groupby(_rows(reader.get_batch(index)), key=lambda row: row[0]):
                _, places, documents = zip(*rows, strict=True)
                yield places[0], list(documents)


def _rows(batch: pa.RecordBatch) -> Iterator[tuple[int, str, Document]]:
    ids = batch.column("input_ids")
    offsets = ids.offsets.to_numpy().tolist()
    # Copied out of the map: the packer holds documents for longer than the file is open.
    ids_values = ids.values.to_numpy().copy()
    mask_values = batch.column("loss_mask").values.to_numpy(zero_copy_only=False)
    others = batch.column("other_fields").to_pylist()
    records, places = batch.column("record").to_pylist(), batch.column("place").to_pylist()
    examples = batch.column("example_id").to_pylist()
    for row, (number, place, example, other) in enumerate(zip(records, places, examples, others, strict=True)):
        span = slice(offsets[row], offsets[row + 1])
        yield number, place, Document(ids_values[span], mask_values[span], example_id=example, **_read_fields(other))


def _other_fields(document: Document) -> str:
    changed: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(document, name)
        if isinstance(value, np.ndarray):
            changed[name] = value.tolist()
        elif value != default:
            changed[name] = vars(value) if name in _RECORDS else value
    return json.dumps(changed) if changed else ""


def _read_fields(text: str) -> dict[str, Any]:
    fields = json.loads(text) if text else {}
    for name, value in fields.items():
        if name in _RECORDS:
            fields[name] = _RECORDS[name](**value)
        elif isinstance(value, list):
            fields[name] = np.array(value, np.uint32)
    return fields


def _note_path(folder: Path, number: int) -> Path:
    return documents_path(folder, number).with_suffix(".json")
