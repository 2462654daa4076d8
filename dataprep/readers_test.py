"""Readers: every record with its place, and every way a file can be wrong."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finecut.dataprep import readers, text_readers
from finecut.dataprep.config import ConversationConfig, SourceConfig
from finecut.dataprep.records import BadRecord, Record
from finecut.proto.config import UserError


def source(*paths: Path | str, **fields: Any) -> SourceConfig:
    return SourceConfig(name="chats", paths=tuple(map(str, paths)), **fields)


def read_all(config: SourceConfig) -> list[Record | BadRecord]:
    return [record for path in readers.files_of(config) for record in readers.read(config, path)]


def test_jsonl_records_carry_line_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\n{"n": "\xc3\xa9"}')
    assert read_all(source(path)) == [
        Record("chats", f"{path}:1", {"n": 1}),
        Record("chats", f"{path}:3", {"n": "é"}),
    ]


def test_gzipped_jsonl_reads_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}\n'))
    assert read_all(source(path)) == [Record("chats", f"{path}:{n}", {"n": n}) for n in (1, 2)]
    assert readers.survey(source(path), path, 1 << 20).num_records == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"messages": [}', "not JSON: Expecting value at column 15"),
        (b'{"messages": ', "not JSON: Expecting value at column 14"),
        (b'{"a": "\xff"}', "not UTF-8 at byte 8 of the line"),
        (b"[" * 200_000, "JSON that is nested too deeply"),
    ],
)
def test_a_corrupt_line_is_named_and_the_next_is_read(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n{}\n")
    first, bad, last = read_all(source(path))
    assert str(bad) == f"{path}:2: {reason}"
    assert (first.place, last.place) == (f"{path}:1", f"{path}:3")


def test_a_line_without_end_does_not_fill_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_readers, "MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"x" * (2 << 20))
    with pytest.raises(UserError, match=r"a.jsonl:1: the line is longer than 1 MiB"):
        read_all(source(path))


def test_a_torn_gzip_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n' * 1000)[:-12])
    with pytest.raises(UserError, match=r"cannot read .*a.jsonl.gz"):
        read_all(source(path))


def write_parquet(path: Path, rows: int) -> Path:
    messages = [[{"role": "user", "content": f"{n}"}] for n in range(rows)]
    pq.write_table(pa.table({"messages": messages, "id": list(range(rows))}), path, row_group_size=700)
    return path


def test_parquet_records_carry_row_numbers_over_row_groups(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 2500)
    records = read_all(source(path))
    assert records[2400] == Record("chats", f"{path}: row 2401", {"messages": [{"role": "user", "content": "2400"}]})
    assert len(records) == readers.survey(source(path), path, 1 << 20).num_records == 2500


def test_a_missing_parquet_column_lists_the_ones_there_are(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 1)
    with pytest.raises(UserError, match=r"has no column 'chat', only messages, id; set the record's fields"):
        read_all(source(path, record=ConversationConfig(messages_field="chat")))


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", 10)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"cannot read .*a.parquet"):
        read_all(source(path))


def test_globs_are_sorted_and_files_taken_once(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    found = readers.files_of(source(tmp_path / "b.jsonl", tmp_path / "**" / "*.jsonl"))
    assert [path.name for path in found] == ["b.jsonl", "a.jsonl", "c.jsonl"]


def test_a_declared_format_wins_over_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("{}\n")
    assert len(read_all(source(path, format="JSONL"))) == 1


def test_all_wrong_paths_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("{}\n")
    with pytest.raises(UserError) as caught:
        readers.files_of(source(tmp_path / "absent.jsonl", tmp_path / "*.parquet", tmp_path / "a.txt", tmp_path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    assert "there is no such file" in lines[0] and "no file matches" in lines[1]
    assert "a.txt does not end in .jsonl" in lines[2] and "is a folder" in lines[3]
