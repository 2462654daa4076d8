"""Readers of the user's, for files of formats that are not known here."""

import functools
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from finecut.dataprep.config import ReaderConfig, SourceConfig
from finecut.dataprep.records import Record
from finecut.dataprep.storage import InputFile
from finecut.proto import extension_pb2
from finecut.proto.config import UserError
from finecut.proto.run import user_code

_FIELD = "data_prep.sources.reader"


class Reader(Protocol):
    """What DataSource.reader's factory returns."""

    def __call__(self, path: str) -> Iterable[dict[str, Any]]:
        """The records of a file, in the same order each time, one by one: a file need not fit in memory.

        `path` is a path or a URL. A record is what a line of JSON would be. It is called in several processes.
        """


def read(source: SourceConfig, config: ReaderConfig, path: InputFile) -> Iterator[Record]:
    """The records of a file, numbered from 1. Raises UserError for whatever the user's code raises."""
    reader = _reader(config)
    number = 0
    try:
        for content in reader(str(path)):
            number += 1
            yield Record(source.name, f"{path.name}: record {number}", content)
    except UserError:
        raise
    except Exception as error:  # user code may raise anything
        told = user_code.told(error)
        raise UserError(
            f"sources {source.name!r}: its reader failed on {path} after {number} records: {told}"
        ) from error


@functools.lru_cache
def _reader(config: ReaderConfig) -> Reader:
    user_code.use(config.code_paths)
    reader = user_code.make(extension_pb2.UserCode(path=config.path, options=dict(config.options)), _FIELD)
    if not callable(reader):
        raise UserError(
            f"{_FIELD}: {config.path!r} returned a {type(reader).__name__}, which cannot be called with a path"
        )
    return reader
