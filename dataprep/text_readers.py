"""Reads JSONL and CSV line by line, each record with its line number."""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from finecut.dataprep.config import SourceConfig
from finecut.dataprep.parsing import check_columns
from finecut.dataprep.records import BadRecord, Record
from finecut.dataprep.storage import WHOLE, InputFile, Span, open_bytes
from finecut.proto.config import UserError

# A line longer than this is taken for a file of another kind; it bounds the reader's memory.
MAX_LINE_BYTES = 64 << 20
_CHUNK_BYTES = 1 << 20


def read_jsonl(source: SourceConfig, path: InputFile, span: Span = WHOLE) -> Iterator[Record | BadRecord]:
    """One JSON value a line; blank lines are skipped. `span` begins and ends where lines do."""
    with open_bytes(path) as file:
        if span.start:
            file.seek(span.start)
        for number, line in enumerate(_lines(file, path, span), span.first):
            if line.strip():
                yield _parse_json(source.name, f"{path}:{number}", line)


def read_csv(source: SourceConfig, path: InputFile, span: Span = WHOLE) -> Iterator[Record | BadRecord]:
    """Comma-separated values below a header line; a quoted field may span lines, and its record stands at the first.

    Every value is text. Raises UserError for a header that cannot be used. A span is always the whole file: whether
    a line break is inside quotes is known only from all that stands before it.
    """
    assert span == WHOLE, span
    csv.field_size_limit(MAX_LINE_BYTES)  # for the whole process; the default of 128 KiB is less than a long message
    with open_bytes(path) as file:
        rows = csv.reader(_decoded(_lines(file, path)), strict=True)
        header = _header(source, path, rows)
        while True:
            place = f"{path}:{rows.line_num + 1}"
            try:
                values = next(rows, None)
            except csv.Error as error:
                yield BadRecord(source.name, place, f"not CSV: {error}")
                continue
            if values is None:
                return
            if values:
                yield _row(source.name, place, header, values)


def count_lines(path: InputFile) -> int:
    """Line breaks of the decompressed file."""
    with open_bytes(path) as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))


def cut_lines(path: Path, segment_bytes: int) -> tuple[str, int, list[Span]]:
    """Reads a plain file once: its SHA-256, its number of lines, and spans of lines of about so many bytes."""
    digest, spans = hashlib.sha256(), []
    start, first, position, line_number = 0, 1, 0, 1
    chunk_bytes = max(1, min(segment_bytes // 8, _CHUNK_BYTES))
    with path.open("rb") as file:
        while chunk := file.read(chunk_bytes):
            digest.update(chunk)
            line_break = chunk.rfind(b"\n") + 1
            lines = chunk.count(b"\n")
            # Where a chunk ends a span, the span ends behind the chunk's last line break.
            if line_break and position + line_break - start >= segment_bytes:
                spans.append(Span(start, position + line_break, first))
                start, first = position + line_break, line_number + lines
            position += len(chunk)
            line_number += lines
    if position > start:
        spans.append(Span(start, position, first))
    return digest.hexdigest(), line_number - 1, spans


def _lines(file: IO[bytes], path: InputFile, span: Span = WHOLE) -> Iterator[bytes]:
    number, position = span.first - 1, span.start
    while (span.end is None or position < span.end) and (line := file.readline(MAX_LINE_BYTES + 1)):
        number += 1
        position += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise UserError(
                f"{path}:{number}: the line is longer than {MAX_LINE_BYTES >> 20} MiB; is this JSONL or CSV?"
            )
        yield line


def _parse_json(source: str, place: str, line: bytes) -> Record | BadRecord:
    try:
        return Record(source, place, json.loads(line.decode("utf-8-sig").rstrip("\r\n")), len(line))
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start + 1} of the line"
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at column {error.colno}"
    except RecursionError:
        reason = "JSON that is nested too deeply"
    except ValueError:
        # Python reads whole numbers of up to 4,300 digits.
        reason = "a number that is too long"
    return BadRecord(source, place, reason)


def _decoded(lines: Iterator[bytes]) -> Iterator[str]:
    """Bytes that are not UTF-8 become surrogates, so that they are found in the record they stand in."""
    for number, line in enumerate(lines):
        yield line.removeprefix(b"\xef\xbb\xbf" if number == 0 else b"").decode("utf-8", errors="surrogateescape")


def _header(source: SourceConfig, path: InputFile, rows: Iterator[list[str]]) -> list[str]:
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise UserError(f"{path}:1: not CSV: {error}") from error
    repeated = [name for name in header if header.count(name) > 1]
    if repeated:
        raise UserError(f"{path}:1: two columns are named {repeated[0]!r}; rename one")
    if header:
        check_columns(source, str(path), header)
    return header


def _row(source: str, place: str, header: list[str], values: list[str]) -> Record | BadRecord:
    if len(values) != len(header):
        return BadRecord(source, place, f"{len(values)} values where the header has {len(header)} columns")
    for name, value in zip(header, values, strict=True):
        if not value.isascii() and any("\udc80" <= character <= "\udcff" for character in value):
            return BadRecord(source, place, f"{name}: not UTF-8")
    return Record(source, place, dict(zip(header, values, strict=True)), sum(map(len, values)))
