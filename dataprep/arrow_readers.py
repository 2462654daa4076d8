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
from finecut.dataprep.storage import InputFile
from finecut.proto.config import UserError

BATCH_ROWS = 1024
_STATE, _DICTIONARY = "state.json", "dataset_dict.json"
# What a finished stream ends with: continuation marker and length 0. Arrow takes a stream that lacks it for whole.
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


def read_parquet(source: SourceConfig, path: InputFile) -> Iterator[Record | BadRecord]:
    """The rows of one file, in order; only the columns that a record needs are read."""
    with path.open("rb") as raw, pq.ParquetFile(raw) as file:
        columns = check_columns(source, str(path), file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=columns):
            yield from _records(source, path, batch, number)
            number += len(batch)


def read_arrow(source: SourceConfig, path: InputFile) -> Iterator[Record | BadRecord]:
    """The rows of one data-*.arrow file, in order."""
    with _stream(path) as stream:
        columns = check_columns(source, str(path), stream.schema.names)
        number = 0
        for whole in stream:
            chosen = whole.select(columns)
            for start in range(0, len(chosen), BATCH_ROWS):
                batch = chosen.slice(start, BATCH_ROWS)
                yield from _records(source, path, batch, number)
                number += len(batch)


def count_parquet(path: Path) -> int:
    return int(pq.ParquetFile(path).metadata.num_rows)


def count_arrow(path: Path) -> int:
    with _stream(path) as stream:
        return sum(len(batch) for batch in stream)


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
    for number, row in enumerate(rows, first + 1):
        place = f"{path}: row {number}"
        yield BadRecord(source.name, place, row) if isinstance(row, str) else Record(source.name, place, row)


def _row(batch: pa.RecordBatch) -> dict[str, Any] | str:
    """The row, or why it cannot be read."""
    try:
        return batch.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"not UTF-8 at byte {error.start + 1} of a text"
    except (ValueError, OverflowError) as error:
        return f"a value that cannot be read: {error}"
