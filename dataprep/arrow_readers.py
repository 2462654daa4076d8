"""Reads rows of Parquet files and of the Arrow streams that `datasets.save_to_disk` writes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from finecut.dataprep.config import SourceConfig
from finecut.dataprep.parsing import check_columns
from finecut.dataprep.records import BadRecord, Record
from finecut.dataprep.storage import WHOLE, InputFile, Span
from finecut.proto.config import UserError

# Rows turned into Python values together: at most so many, and of about so many bytes.
BATCH_ROWS = 1024
BATCH_BYTES = 8 << 20
_STATE, _DICTIONARY = "state.json", "dataset_dict.json"
# What a finished stream ends with: continuation marker and length 0. Arrow takes a stream that lacks it for whole.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(source: SourceConfig, path: InputFile, span: Span = WHOLE) -> Iterator[Record | BadRecord]:
    """The rows of a span of row groups, in order; only the columns that a record needs are read."""
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        columns = check_columns(source, str(path), file.schema_arrow.names)
        first = 0
        for group in range(file.num_row_groups):
            metadata = file.metadata.row_group(group)
            if first >= span.start and (span.end is None or first < span.end) and metadata.num_rows:
                rows = _rows_together(metadata.total_byte_size, metadata.num_rows)
                number = first
                for batch in file.iter_batches(batch_size=rows, columns=columns, row_groups=[group]):
                    yield from _records(source, path, batch, number)
                    number += len(batch)
            first += metadata.num_rows


def read_arrow(source: SourceConfig, path: InputFile, span: Span = WHOLE) -> Iterator[Record | BadRecord]:
    """The rows of a span of record batches of one data-*.arrow file, in order."""
    with _stream(path) as stream:
        columns = check_columns(source, str(path), stream.schema.names)
        first = 0
        for whole in stream:
            if first >= span.start and (span.end is None or first < span.end) and len(whole):
                chosen = whole.select(columns)
                rows = _rows_together(chosen.nbytes, len(chosen))
                for start in range(0, len(chosen), rows):
                    yield from _records(source, path, chosen.slice(start, rows), first + start)
            first += len(whole)


def cut_parquet(path: InputFile, segment_bytes: int) -> tuple[int, list[Span]]:
    """Number of rows, and spans of row groups of about so many bytes."""
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        return _spans([(group.num_rows, group.total_byte_size) for group in groups], segment_bytes)


def cut_arrow(path: InputFile, segment_bytes: int) -> tuple[int, list[Span]]:
    """Number of rows, and spans of record batches of about so many bytes."""
    with _stream(path) as stream:
        return _spans([(len(batch), batch.nbytes) for batch in stream], segment_bytes)


def _spans(parts: list[tuple[int, int]], segment_bytes: int) -> tuple[int, list[Span]]:
    """From the rows and bytes of each part to the number of rows and spans of whole parts."""
    spans, start, row, size = [], 0, 0, 0
    for rows, num_bytes in parts:
        row, size = row + rows, size + num_bytes
        if size >= segment_bytes:
            spans.append(Span(start, row, start + 1))
            start, size = row, 0
    if row > start:
        spans.append(Span(start, row, start + 1))
    return row, spans


def _rows_together(num_bytes: int, num_rows: int) -> int:
    return min(BATCH_ROWS, max(1, BATCH_BYTES * num_rows // max(num_bytes, 1)))


def data_files(folder: InputFile) -> list[InputFile]:
    """The files of one dataset in the order of its rows. Raises UserError where the folder holds none."""
    if (folder / _DICTIONARY).exists():
        splits = _json(folder / _DICTIONARY).get("splits") or ["train"]
        one = folder / str(splits[0])
        raise UserError(f"{folder} holds the splits {', '.join(map(str, splits))}; give the folder of one: {one}")
    if not (folder / _STATE).exists():
        raise UserError(f"{folder} has no {_STATE}, so datasets.save_to_disk did not write it")
    state = _json(folder / _STATE)
    if state.get("_indices_data_files"):
        raise UserError(f"{folder} has an index over its rows; load it and save it with a current version of datasets")
    try:
        names = [str(item["filename"]) for item in state["_data_files"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / _STATE} lists no data files") from error
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {missing[0]}, which its {_STATE} lists")
    return [folder / name for name in names]


def _json(path: InputFile) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.load(file)
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return value if isinstance(value, dict) else {}


@contextmanager
def _stream(path: InputFile) -> Iterator[pa.RecordBatchStreamReader]:
    source = pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open("rb"), mode="r")
    with source:
        size = source.size()
        source.seek(max(size - len(_END_OF_STREAM), 0))
        if source.read(len(_END_OF_STREAM)) != _END_OF_STREAM:
            raise pa.ArrowInvalid("the stream has no end; it was cut off")
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            yield stream


def _records(source: SourceConfig, path: InputFile, batch: pa.RecordBatch, first: int) -> Iterator[Record | BadRecord]:
    try:
        rows: list[Any] = batch.to_pylist()
    except (ValueError, OverflowError):
        # Some value has no Python form, such as text that is not UTF-8: find its row.
        rows = [_row(batch.slice(number, 1)) for number in range(len(batch))]
    num_bytes = batch.nbytes // max(len(batch), 1)
    for number, row in enumerate(rows, first + 1):
        place = f"{path}: row {number}"
        yield BadRecord(source.name, place, row) if isinstance(row, str) else Record(source.name, place, row, num_bytes)


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    """The row, or why it cannot be read."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1} of a text"
    except (ValueError, OverflowError) as error:
        return f"a value that cannot be read: {error}"
