"""Reads records from files of any known format, one at a time, each with the place it stands at.

Formats: JSONL and CSV (also compressed), Parquet, and folders written by `datasets.save_to_disk`; on disk or behind a
URL. See storage.py for files, text_readers.py and arrow_readers.py for formats.
"""

import glob
import lzma
import zlib
from collections.abc import Iterator

import pyarrow as pa

from finecut.dataprep import arrow_readers, text_readers
from finecut.dataprep.config import SourceConfig
from finecut.dataprep.records import BadRecord, Record
from finecut.dataprep.storage import COMPRESSED_ENDINGS, InputFile, RemoteFile, describe, expand
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
                found.update(dict.fromkeys(_files_at(path, source.format)))
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


def read(source: SourceConfig, path: InputFile) -> Iterator[Record | BadRecord]:
    """All records of one file, those that cannot be parsed as BadRecord. Memory is bounded by a line or 1,024 rows."""
    try:
        yield from _READERS[format_of(path, source.format) or "JSONL"](source, path)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(source, path, error) from error


def count(source: SourceConfig, path: InputFile) -> int:
    """About how many records a file has (blank lines count too), for progress; 0 for a remote file."""
    if isinstance(path, RemoteFile):
        return 0  # it would be fetched twice
    try:
        match format_of(path, source.format):
            case "PARQUET":
                return arrow_readers.count_parquet(path)
            case "HF_DATASET":
                return arrow_readers.count_arrow(path)
            case _:
                return text_readers.count_lines(path)
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
