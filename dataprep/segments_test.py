"""Cutting files: the parts hold every record once, under the places that the whole gives."""

import bz2
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finecut.dataprep import readers, segments, storage
from finecut.dataprep.config import PackingConfig, PrepareConfig, SourceConfig, TextConfig

SOURCE = SourceConfig("texts", ("unused",), record=TextConfig())


def parts(path: Path, segment_bytes: int) -> list[list[object]]:
    survey = readers.survey(SOURCE, path, segment_bytes)
    return [list(readers.read(SOURCE, path, span)) for span in survey.spans]


def joined(path: Path, segment_bytes: int) -> list[object]:
    return [record for part in parts(path, segment_bytes) for record in part]


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    lines=st.lists(st.sampled_from(["", '{"text": "a"}', '{"text": "' + "b" * 40 + '"}', "{torn", "\r"]), max_size=30),
    ends_with_break=st.booleans(),
    segment_bytes=st.integers(1, 200),
)
def test_parts_of_lines_hold_every_line_once(
    tmp_path: Path, lines: list[str], ends_with_break: bool, segment_bytes: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines) + ("\n" if ends_with_break else ""), newline="")
    assert joined(path, segment_bytes) == list(readers.read(SOURCE, path))
    survey = readers.survey(SOURCE, path, segment_bytes)
    assert survey.fingerprint == storage.fingerprint(path)
    assert survey.num_records == path.read_bytes().count(b"\n")


def test_parts_of_lines_are_of_the_size_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {number:05d}"}) + "\n" for number in range(1000)))
    survey = readers.survey(SOURCE, path, 2500)
    sizes = [span.end - span.start for span in survey.spans if span.end]
    assert sum(sizes) == path.stat().st_size == 25_000
    assert all(2500 <= size < 2500 * 1.25 for size in sizes[:-1])


@pytest.mark.parametrize("segment_bytes", [1, 3000, 1 << 30])
def test_parts_of_tables_hold_every_row_once(tmp_path: Path, segment_bytes: int) -> None:
    table = pa.table({"text": [f"number {number}" for number in range(1000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=64)
    whole = list(readers.read(SOURCE, tmp_path / "a.parquet"))
    assert [record.place.rpartition(" ")[2] for record in whole] == [str(number + 1) for number in range(1000)]
    assert joined(tmp_path / "a.parquet", segment_bytes) == whole
    assert len(parts(tmp_path / "a.parquet", segment_bytes)) == {1: 16, 3000: 5, 1 << 30: 1}[segment_bytes]


def test_parts_of_a_saved_dataset_hold_every_row_once(tmp_path: Path) -> None:
    source = SourceConfig("texts", ("unused",), format="HF_DATASET", record=TextConfig())
    path = tmp_path / "data-00000-of-00001.arrow"
    table = pa.table({"text": [f"number {number}" for number in range(1000)]})
    with pa.ipc.new_stream(path, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=64):
            writer.write_batch(batch)
    survey = readers.survey(source, path, 2000)
    assert (survey.num_records, len(survey.spans)) == (1000, 6)
    found = [record for span in survey.spans for record in readers.read(source, path, span)]
    assert found == list(readers.read(source, path))
    assert len(found) == 1000


def test_a_compressed_file_and_csv_are_not_cut(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(b'{"text": "a"}\n' * 1000))
    (tmp_path / "a.csv").write_text("text\n" + '"a\nb"\n' * 1000)
    assert [len(part) for part in parts(tmp_path / "a.jsonl.bz2", 10)] == [1000]
    assert [len(part) for part in parts(tmp_path / "a.csv", 10)] == [1000]


def test_segments_are_numbered_over_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BYTES", 100)
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"text": "some words"}\n' * 20)
    config = PrepareConfig((SourceConfig("texts", (f"{tmp_path}/*.jsonl",)),), "unused", PackingConfig(16, 1))
    plan = segments.plan(config)
    assert [segment.number for segment in plan.segments] == list(range(len(plan.segments)))
    assert {segment.path.name for segment in plan.segments} == {"a.jsonl", "b.jsonl"}
    assert plan.num_records == 40
    assert len(plan.segments) > 4
    assert sum(segment.num_bytes for segment in plan.segments) == pytest.approx(920, abs=20)
