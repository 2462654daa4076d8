"""Reads records from JSONL (also gzipped) and Parquet files, one at a time, each with the place it stands at."""

import glob
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from finecut.dataprep.config import SourceConfig
from finecut.dataprep.parsing import columns
from finecut.dataprep.records import BadRecord, Record
from finecut.proto.config import UserError

# A line longer than this is taken for a file that is not JSONL at all; it bounds the reader's memory.
MAX_LINE_BYTES = 64 << 20
PARQUET_ROWS = 1024

_FORMATS = {".jsonl": "JSONL", ".ndjson": "JSONL", ".parquet": "PARQUET"}


def files_of(source: SourceConfig) -> list[Path]:
    """The source's files: paths in the order given, a glob's in the order of names, each file once.

    Raises UserError that lists every path that is not a readable kind of file.
    """
    found: dict[Path, None] = {}
    problems: list[str] = []
    for pattern in source.paths:
        matches = _expand(pattern)
        if not matches:
            what = "no file matches" if glob.has_magic(pattern) else "there is no such file"
            problems.append(f"sources {source.name!r}: {what}: {pattern}")
        for path in matches:
            if path.is_dir():
                problems.append(
                    f"sources {source.name!r}: {path} is a folder; write {path}/*.jsonl for the files in it"
                )
            elif format_of(path, source.format) is None:
                problems.append(
                    f"sources {source.name!r}: {path.name} does not end in .jsonl, .jsonl.gz, .ndjson or .parquet; "
                    "set the source's format"
                )
            found[path] = None
    if problems:
        raise UserError("\n".join(problems))
    return list(found)


def format_of(path: Path, declared: str | None) -> str | None:
    """ "JSONL" or "PARQUET": as declared, else by the file's ending; None where the ending says nothing."""
    ending = path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]
    return declared or _FORMATS.get("".join(ending))


def read(source: SourceConfig, path: Path) -> Iterator[Record | BadRecord]:
    """All records of one file, those that cannot be parsed as BadRecord. Memory is bounded by a line or 1,024 rows."""
    try:
        if format_of(path, source.format) == "PARQUET":
            yield from _read_parquet(source, path)
        else:
            yield from _read_jsonl(source, path)
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
        raise UserError(f"sources {source.name!r}: cannot read {path}: {error}") from error


def count(source: SourceConfig, path: Path) -> int:
    """About how many records a file has (blank lines count too), for progress."""
    try:
        if format_of(path, source.format) == "PARQUET":
            return int(pq.ParquetFile(path).metadata.num_rows)
        with _open(path) as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))
    except (OSError, EOFError, zlib.error, pa.ArrowInvalid) as error:
        raise UserError(f"sources {source.name!r}: cannot read {path}: {error}") from error


def _expand(pattern: str) -> list[Path]:
    if Path(pattern).exists():
        return [Path(pattern)]
    return [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _read_jsonl(source: SourceConfig, path: Path) -> Iterator[Record | BadRecord]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise UserError(f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; is this JSONL?")
            if line.strip():
                yield _parse_line(source.name, f"{path}:{number}", line)


def _parse_line(source: str, place: str, line: bytes) -> Record | BadRecord:
    try:
        return Record(source, place, json.loads(line.decode("utf-8-sig").rstrip("\r\n")))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        reason = "JSON that is nested too deeply"
    return BadRecord(source, place, reason)


def _read_parquet(source: SourceConfig, path: Path) -> Iterator[Record | BadRecord]:
    file = pq.ParquetFile(path)
    names = file.schema_arrow.names
    required, optional = columns(source.record)
    for name in required:
        if name not in names:
            raise UserError(
                f"sources {source.name!r}: {path} has no column {name!r}, only {', '.join(names)}; "
                "set the record's fields, such as conversation.messages_field"
            )
    chosen = [name for name in names if name in required or name in optional]
    number = 0
    for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=chosen):
        for row in batch.to_pylist():
            number += 1
            yield Record(source.name, f"{path}: row {number}", row)
