"""However data preparation is run, in one process or many, at once or killed in between, the artifact is the same."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from finecut.dataprep import local_ray, segment_runner, segment_work, segments, shard_files, stage
from finecut.dataprep.segment_files import SegmentWriter
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import Outcome
from finecut.dataprep.testing import MARKED_TEMPLATE, write_tiny_tokenizer
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, files
from finecut.proto.run.events import follow

NUM_RECORDS = 900
# Cuts the input of these tests into eight segments.
SMALL_SEGMENT_BYTES = 12_000
NUM_SEGMENTS = 8


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "ray" not in request.fixturenames:
        monkeypatch.setattr(segment_runner, "_ray_is_there", lambda: False)
    monkeypatch.setattr(segments, "SEGMENT_BYTES", SMALL_SEGMENT_BYTES)
    monkeypatch.setattr(segment_work, "BATCH_RECORDS", 16)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A Ray as the program starts it for itself."""
    with local_ray.started():
        yield sys.modules["ray"]


def chat(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"What is {number}?"}, {"role": "assistant", "content": f"It is {number}."}]
    return {"messages": messages}


def write_job(folder: Path, tokenizer: Path, fields: str = "") -> job_pb2.JobConfig:
    """A job on 900 records in two files, with duplicates between distant segments."""
    lines = [json.dumps(chat(number % 850)) + "\n" for number in range(NUM_RECORDS)]
    (folder / "a.jsonl").write_text("".join(lines[:600]))
    (folder / "b.jsonl").write_text("".join(lines[600:]))
    job = text_format.Parse(
        f'name: "chats" stages {{ name: "prepare" data_prep {{ sources {{ paths: "*.jsonl" name: "chats" }} '
        f'tokenization {{ tokenizer: "{tokenizer}" }} packing {{ block_size: 256 window_documents: 300 }} '
        f"evaluation {{ fraction: 0.1 }} filter {{ deduplication {{}} }} {fields} }} }}",
        job_pb2.JobConfig(),
    )
    if "late" in fields:
        (folder / "late.csv").touch()
    return resolve(job, base_dir=folder)


def contents(artifact: artifact_pb2.Artifact) -> dict[str, str]:
    return {file.path: file.sha256 for file in artifact.files}


def steps(job: job_pb2.JobConfig) -> list[int]:
    events, _ = follow(RunFolder.of(job).events("prepare"))
    return [event.step.step for event in events if event.HasField("step")]


def test_ray_gives_the_bytes_of_one_process(tmp_path: Path, tokenizer: Path, ray: Any) -> None:
    alone = write_job(folder(tmp_path, "alone"), tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_runner, "_ray_is_there", lambda: False)
        expected = stage.run_stage(alone, "prepare")
    assert expected.data.sources[0].filtered_record_counts["duplicates"] == 50
    many = write_job(folder(tmp_path, "many"), tokenizer)
    found = stage.run_stage(many, "prepare")
    assert contents(found) == contents(expected)
    assert found.data == expected.data
    assert steps(many)[-1] == NUM_RECORDS
    assert not (RunFolder.of(many).stage("prepare") / "work").exists()


def test_bad_records_are_the_same_on_ray(
    tmp_path: Path, tokenizer: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = write_job(tmp_path, tokenizer, "error_budget { max_records: 3 }")
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    for number in (2, 50, 51, 250):
        lines[number] = "{torn"
    lines[299] = json.dumps({"messages": "x" * 10_000_000})
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as on_ray:
        stage.run_stage(job, "prepare")
    monkeypatch.setattr(segment_runner, "_ray_is_there", lambda: False)
    with pytest.raises(UserError) as in_turn:
        stage.run_stage(job, "prepare")
    assert str(on_ray.value) == str(in_turn.value)
    assert f"{tmp_path}/b.jsonl:3: not JSON" in str(on_ray.value)
    assert f"{tmp_path}/b.jsonl:251: not JSON" in str(on_ray.value)


def test_reading_stops_where_it_is_hopeless(tmp_path: Path, tokenizer: Path) -> None:
    job = write_job(tmp_path, tokenizer)
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    lines[130] = "{torn"
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"1 bad records in the first \d+ records, where reading stopped, 0 allowed"):
        stage.run_stage(job, "prepare")
    assert steps(job)[-1] < NUM_RECORDS / 2
    assert not (RunFolder.of(job).stage("prepare") / "work").exists()


def test_a_sample_of_each_source_is_tried_first(tmp_path: Path, tokenizer: Path) -> None:
    job = write_job(tmp_path, tokenizer, 'sources { paths: "late.csv" name: "late" text {} }')
    (tmp_path / "late.csv").write_text("text\nfine\n")
    assert stage.run_stage(job, "prepare").data.sources[1].record_count == 1
    shutil.rmtree(RunFolder.of(job).root)
    (tmp_path / "late.csv").write_text("text,other\nfine\n")
    with pytest.raises(UserError, match=r"late.csv:2: 1 values where the header has 2 columns"):
        stage.run_stage(job, "prepare")
    assert not steps(job)


def test_a_wrong_mask_on_ray_is_named(tmp_path: Path, tokenizer: Path, ray: Any) -> None:
    job = write_job(tmp_path, tokenizer)
    (tmp_path / "template").write_text(MARKED_TEMPLATE.replace("'<|im_end|>' }}{% endgen", "'' }}{% endgen"))
    job.stages[0].data_prep.tokenization.chat_template_file = str(tmp_path / "template")
    with pytest.raises(UserError, match="no special token ends it"):
        stage.run_stage(job, "prepare")


def test_a_worker_that_is_killed_is_replaced(
    tmp_path: Path, tokenizer: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = stage.run_stage(write_job(folder(tmp_path, "whole"), tokenizer), "prepare")
    task, mark = segment_runner._ray_task, tmp_path / "killed"

    def fatal_task(row: dict[str, Any], **arguments: Any) -> dict[str, Any]:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return task(row, **arguments)

    monkeypatch.setattr(segment_runner, "_ray_task", fatal_task)
    assert contents(stage.run_stage(write_job(folder(tmp_path, "hurt"), tokenizer), "prepare")) == contents(expected)
    assert mark.exists()


@pytest.mark.parametrize("where", ["between segments", "in a segment", "in a note", "in shards"])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path: Path, tokenizer: Path, where: str) -> None:
    expected = stage.run_stage(write_job(folder(tmp_path, "whole"), tokenizer), "prepare")
    job = write_job(folder(tmp_path, "killed"), tokenizer)
    killed = subprocess.run(
        [sys.executable, __file__, where, str(tokenizer), str(tmp_path / "killed")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=120,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    work = RunFolder.of(job).stage("prepare") / "work/segments"
    num_finished = len(list(work.glob("*.json")))
    assert num_finished == {"in shards": NUM_SEGMENTS}.get(where, 4)
    if where == "in shards":
        assert list(RunFolder.of(job).artifact("prepare").glob(f"*{shard_files.PARTIAL_SUFFIX}"))

    with pytest.MonkeyPatch.context() as patch:
        written: list[int] = []
        run = SegmentWorker.run
        patch.setattr(SegmentWorker, "run", lambda *args: (written.append(args[1].number), run(*args))[1])
        patch.setattr(stage, "rehearse", lambda config: None)
        found = stage.run_stage(job, "prepare")
    assert contents(found) == contents(expected)
    assert found.data == expected.data
    assert written == list(range(num_finished, NUM_SEGMENTS))
    assert not work.parent.exists()


def test_finished_segments_of_other_inputs_are_not_taken_over(tmp_path: Path, tokenizer: Path) -> None:
    job = write_job(tmp_path, tokenizer)
    subprocess.run(
        [sys.executable, __file__, "between segments", str(tokenizer), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        timeout=120,
    )
    (tmp_path / "a.jsonl").write_text((tmp_path / "a.jsonl").read_text().replace("What", "When"))
    expected = write_job(folder(tmp_path, "other"), tokenizer)
    (tmp_path / "other/a.jsonl").write_text((tmp_path / "a.jsonl").read_text())
    assert contents(stage.run_stage(job, "prepare")) == contents(stage.run_stage(expected, "prepare"))


def folder(parent: Path, name: str) -> Path:
    (parent / name).mkdir()
    return parent / name


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(where: str, tokenizer: Path, place: Path) -> None:
    """Prepares the data in a folder as the tests above do, and kills itself on the way."""
    segments.SEGMENT_BYTES = SMALL_SEGMENT_BYTES
    segment_work.BATCH_RECORDS = 16
    job = write_job(place, tokenizer)
    finish, write_atomically, add_row = SegmentWriter.finish, files.write_atomically, shard_files.SplitWriter._add_row

    def finish_or_die(writer: SegmentWriter, outcome: Outcome) -> Outcome:
        outcome = finish(writer, outcome)
        return die() or outcome if writer._note.stem == "00003" and where == "between segments" else outcome

    def write_or_die(path: Path, text: str) -> None:
        if path.name == "00004.json" and where == "in a note":
            path.with_name(f".{path.name}.tmp").write_text(text[:20])
            die()
        write_atomically(path, text)

    def add_or_die(writer: SegmentWriter, records: Any) -> None:
        if writer._note.stem == "00004" and writer._num_records and where == "in a segment":
            die()
        add(writer, records)

    def add_row_or_die(writer: shard_files.SplitWriter, documents: Any, row_bytes: int) -> None:
        add_row(writer, documents, row_bytes)
        if where == "in shards" and writer.statistics.document_count > 100:
            writer._flush()
            die()

    add = SegmentWriter.add
    SegmentWriter.finish = finish_or_die  # type: ignore[method-assign]
    SegmentWriter.add = add_or_die  # type: ignore[method-assign]
    files.write_atomically = write_or_die
    shard_files.SplitWriter._add_row = add_row_or_die  # type: ignore[method-assign]
    stage.run_stage(job, "prepare")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
