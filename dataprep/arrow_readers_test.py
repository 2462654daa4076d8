"""Folders that datasets.save_to_disk wrote, laid out here by hand, and Parquet's bad values."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finecut.dataprep import readers
from finecut.dataprep.config import SourceConfig
from finecut.dataprep.records import BadRecord, Record
from finecut.proto.config import UserError


def save_to_disk(folder: Path, shards: list[list[int]], **state: Any) -> Path:
    """What `datasets.save_to_disk` leaves: a state, a description, and one Arrow stream a shard."""
    folder.mkdir()
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, numbers in zip(names, shards, strict=True):
        table = pa.table({"id": numbers, "messages": [[{"role": "user", "content": str(n)}] for n in numbers]})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=1000)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], **state}))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def source(path: Path, format: str | None = "HF_DATASET") -> SourceConfig:
    return SourceConfig("chats", (str(path),), format)


def read_all(config: SourceConfig) -> list[Record | BadRecord]:
    return [record for path in readers.files_of(config) for record in readers.read(config, path)]


def test_a_dataset_folder_reads_its_rows_in_order(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "set", [list(range(2500)), [2500, 2501]])
    records = read_all(source(folder))
    assert [record.content["messages"][0]["content"] for record in records] == [str(n) for n in range(2502)]
    assert set(records[0].content) == {"messages"}  # other columns are not even read
    assert records[2400].place == f"{folder}/data-00000-of-00002.arrow: row 2401"
    assert records[2501].place == f"{folder}/data-00001-of-00002.arrow: row 2"
    assert (
        sum(readers.survey(source(folder), path, 1 << 20).num_records for path in readers.files_of(source(folder)))
        == 2502
    )


def test_a_folder_of_splits_names_them(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=rf"holds the splits train, test; give the folder of one: {tmp_path}/train"):
        read_all(source(tmp_path))


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("{", "state.json is not JSON"),
        ("{}", "state.json lists no data files"),
        ('{"_data_files": [{}]}', "state.json lists no data files"),
        ('{"_data_files": [{"filename": "gone.arrow"}]}', "lacks gone.arrow"),
        ('{"_indices_data_files": [{"filename": "i"}]}', "has an index over its rows"),
    ],
)
def test_a_damaged_state_is_refused(tmp_path: Path, state: str, reason: str) -> None:
    (tmp_path / "state.json").write_text(state)
    with pytest.raises(UserError, match=f"sources 'chats': .*{reason}"):
        read_all(source(tmp_path))


def test_what_is_no_dataset_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no state\.json"):
        read_all(source(tmp_path))
    (tmp_path / "a.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="is not a folder; name the one"):
        read_all(source(tmp_path / "a.arrow"))


@pytest.mark.parametrize("lost", [4, 8, 100, 5000])
def test_a_stream_that_was_cut_off_is_refused(tmp_path: Path, lost: int) -> None:
    path = save_to_disk(tmp_path / "set", [list(range(2500))]) / "data-00000-of-00001.arrow"
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(UserError, match=r"cannot read .*data-00000-of-00001.arrow: the stream has no end"):
        read_all(source(tmp_path / "set"))


def test_a_row_that_is_not_utf_8_is_a_bad_record(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    text = pa.array([b"good", b"b\xffd", b"too"]).view(pa.string())
    pq.write_table(pa.table({"messages": text}), path)
    first, bad, last = read_all(source(path, None))
    assert str(bad) == f"{path}: row 2: not UTF-8 at byte 2 of a text"
    assert (first.content, last.content) == ({"messages": "good"}, {"messages": "too"})
