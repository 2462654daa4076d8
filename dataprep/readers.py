"""Reads records from files of any known format, one at a time, each with the place it stands at.

Formats: JSONL and CSV (also compressed), Parquet, and folders written by `datasets.save_to_disk`; on disk or behind a
URL. See storage.py for files, text_readers.py and arrow_readers.py for formats.
"""

import glob
import lzma
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from finecut.dataprep import arrow_readers, storage, text_readers, user_readers
from finecut.dataprep.config import SourceConfig
from finecut.dataprep.records import BadRecord, Record
from finecut.dataprep.storage import COMPRESSED_ENDINGS, WHOLE, InputFile, RemoteFile, Span, describe, expand
from finecut.proto.config import UserError

_FORMATS = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".parquet": "PARQUET"}
_READERS = {
    "JSONL": text_readers.read_jsonl,
    "CSV": text_readers.read_csv,
    "PARQUET": arrow_readers.read_parquet,
    "HF_DATASET": arrow_readers.read_arrow,
}
# What a damaged file raises, below all of its readers.
_DAMAGE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException)


@dataclass(frozen=True)
class Survey:
    """What is known of a file before its records are read.

    Attributes:
      fingerprint: As storage.fingerprint gives it.
      num_records: About, for progress: blank lines count too; 0 where it cannot be known.
      spans: Its parts, in order.
    """

    fingerprint: str
    num_records: int
    spans: Sequence[Span]


def files_of(source: SourceConfig) -> list[InputFile]:
    """The source's files: paths in the order given, a glob's in the order of names, each file once.

    A Hugging Face dataset is the files in its folder. Raises UserError that lists every path that is wrong.
    """
    found: dict[InputFile, None] = {}
    problems: list[str] = []
    for pattern in source.paths:
        try:
            matches = expand(pattern)
            if not matches:
                what = "no file matches" if glob.has_magic(pattern) else "there is no such file"
                raise UserError(f"{what}: {pattern}")
        except UserError as error:
            problems.append(f"sources {source.name!r}: {error}")
            continue
        for path in matches:
            try:
                found.update(dict.fromkeys([path] if source.reader else _files_at(path, source.format)))
            except UserError as error:
                problems.append(f"sources {source.name!r}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return list(found)


def format_of(path: InputFile, declared: str | None) -> str | None:
    """A name of FileFormat: as declared, else by the file's ending; None where the ending says nothing."""
    if declared:
        return declared
    *rest, last = path.suffixes or [""]
    if last not in COMPRESSED_ENDINGS:
        return _FORMATS.get(last)
    inner = _FORMATS.get("".join(rest[-1:]))
    return inner if inner in ("JSONL", "CSV") else None


def read(source: SourceConfig, path: InputFile, span: Span = WHOLE) -> Iterator[Record | BadRecord]:
    """The records of a file or of a part of it, those that cannot be parsed as BadRecord.

    Memory is bounded by a line, or by what arrow_readers takes together. Raises UserError for a file that is damaged.
    """
    if source.reader is not None:
        yield from user_readers.read(source, source.reader, path)
        return
    try:
        yield from _READERS[format_of(path, source.format) or "JSONL"](source, path, span)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(source, path, error) from error


def survey(source: SourceConfig, path: InputFile, segment_bytes: int) -> Survey:
    """Looks at a file as a whole, and cuts it into spans of about `segment_bytes` that can be read apart.

    Cut are plain JSONL at line breaks, and tables between row groups or record batches. The cuts depend on the file's
    bytes alone. Raises UserError for a file that is damaged.
    """
    format = format_of(path, source.format) or "JSONL"
    try:
        if source.reader is not None:
            return Survey(storage.fingerprint(path), 0, (WHOLE,))
        if isinstance(path, RemoteFile):
            if format != "PARQUET":
                # Where its lines are is known only from all of it, and it would be fetched twice.
                return Survey(storage.fingerprint(path), 0, (WHOLE,))
            return Survey(storage.fingerprint(path), *arrow_readers.cut_parquet(path, segment_bytes))
        if format == "JSONL" and "".join(path.suffixes[-1:]) not in COMPRESSED_ENDINGS:
            return Survey(*text_readers.cut_lines(path, segment_bytes))
        if format in ("JSONL", "CSV"):
            return Survey(storage.fingerprint(path), text_readers.count_lines(path), (WHOLE,))
        cut = arrow_readers.cut_parquet if format == "PARQUET" else arrow_readers.cut_arrow
        return Survey(storage.fingerprint(path), *cut(path, segment_bytes))
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(source, path, error) from error


def _unreadable(source: SourceConfig, path: InputFile, error: Exception) -> Exception:
    """What a user reads of a damaged file or of a store that fails; our own mistakes stay as they are."""
    if isinstance(error, _DAMAGE) or isinstance(path, RemoteFile):
        return UserError(f"sources {source.name!r}: cannot read {path}: {describe(error)}")
    return error


def _files_at(path: InputFile, declared: str | None) -> list[InputFile]:
    try:
        is_folder = path.is_dir()
        if declared == "HF_DATASET" and is_folder:
            return arrow_readers.data_files(path)
    except UserError:
        raise
    except Exception as error:  # each kind of store has exceptions of its own
        raise UserError(f"cannot look at {path}: {describe(error)}") from error
    if declared == "HF_DATASET":
        raise UserError(f"{path} is not a folder; name the one that datasets.save_to_disk wrote")
    if is_folder:
        raise UserError(
            f"{path} is a folder; write {path}/*.jsonl for the files in it, or set the source's format to HF_DATASET "
            "where datasets.save_to_disk wrote it"
        )
    if format_of(path, declared) is None:
        raise UserError(
            f"{path.name} does not end in .jsonl, .ndjson, .csv (also with {', '.join(COMPRESSED_ENDINGS)}) or "
            ".parquet; set the source's format"
        )
    return [path]
