"""CSV and compressed lines: line numbers, quoting, and every way a line can be wrong."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from finecut.dataprep import readers
from finecut.dataprep.config import ConversationConfig, SourceConfig
from finecut.dataprep.records import BadRecord, Record
from finecut.proto.config import UserError

ALPACA = ConversationConfig(schema="ALPACA")
HEADER = b"instruction,input,output\n"


def read_all(path: Path, record: ConversationConfig = ALPACA) -> list[Record | BadRecord]:
    source = SourceConfig("chats", (str(path),), record=record)
    return [record for path in readers.files_of(source) for record in readers.read(source, path)]


def read_csv(folder: Path, content: bytes) -> list[Record | BadRecord]:
    (folder / "a.csv").write_bytes(content)
    return read_all(folder / "a.csv")


def test_csv_records_stand_at_their_first_line(tmp_path: Path) -> None:
    records = read_csv(tmp_path, b"\xef\xbb\xbf" + HEADER + b'Hi,,Hello\r\n\n"a ""b"",\nc",,"d\n"\nx,y,\xc3\xa9')
    assert [(record.place.rsplit(":", 1)[1], record.content["output"]) for record in records] == [
        ("2", "Hello"),
        ("4", "d\n"),
        ("7", "é"),
    ]
    assert records[1].content == {"instruction": 'a "b",\nc', "input": "", "output": "d\n"}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"a,b", "2 values where the header has 3 columns"),
        (b"a,b,c,d", "4 values where the header has 3 columns"),
        (b"a,b,\xff", "output: not UTF-8"),
        (b'a,"b"c,d', "not CSV: ',' expected after '\"'"),
    ],
)
def test_a_bad_csv_line_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    first, bad, last = read_csv(tmp_path, HEADER + b"a,b,c\n" + line + b"\nd,e,f\n")
    assert str(bad) == f"{tmp_path}/a.csv:3: {reason}"
    assert (first.place, last.place) == (f"{tmp_path}/a.csv:2", f"{tmp_path}/a.csv:4")


def test_a_quote_that_is_never_closed_is_a_bad_record(tmp_path: Path) -> None:
    first, bad = read_csv(tmp_path, HEADER + b'a,b,c\nd,"e,f\ng,h,i\n')
    assert isinstance(first, Record)
    assert str(bad) == f"{tmp_path}/a.csv:3: not CSV: unexpected end of data"


def test_long_csv_fields_are_read(tmp_path: Path) -> None:
    (record,) = read_csv(tmp_path, HEADER + b"a,b," + b"x" * 1_000_000)
    assert len(record.content["output"]) == 1_000_000


def test_a_csv_header_must_have_the_fields_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.csv:1: two columns are named 'output'"):
        read_csv(tmp_path, b"instruction,output,output\n")
    with pytest.raises(UserError, match=r"a.csv has no column 'instruction', only question, output"):
        read_csv(tmp_path, b"question,output\n")
    assert read_csv(tmp_path, b"") == []


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.mark.parametrize("ending", COMPRESSORS)
def test_compressed_files_read_the_same_and_torn_ones_are_refused(tmp_path: Path, ending: str) -> None:
    plain = b"".join(b'{"messages": %d}\n' % number for number in range(5000))
    path = tmp_path / f"a.jsonl.{ending}"
    path.write_bytes(COMPRESSORS[ending](plain))
    records = read_all(path, ConversationConfig())
    assert (len(records), records[-1].place) == (5000, f"{path}:5000")
    assert readers.survey(SourceConfig("chats", (str(path),)), path, 1 << 20).num_records == 5000
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"cannot read .*a.jsonl.{ending}"):
        read_all(path, ConversationConfig())
    table = tmp_path / f"a.csv.{ending}"
    table.write_bytes(COMPRESSORS[ending](HEADER + b"a,b,c\n"))
    assert read_all(table) == [Record("chats", f"{table}:2", {"instruction": "a", "input": "b", "output": "c"})]


def test_a_file_that_only_says_that_it_is_compressed_is_refused(tmp_path: Path) -> None:
    for ending in COMPRESSORS:
        path = tmp_path / f"a.jsonl.{ending}"
        path.write_bytes(b'{"messages": 1}\n')
        with pytest.raises(UserError, match=f"cannot read .*a.jsonl.{ending}"):
            read_all(path, ConversationConfig())
