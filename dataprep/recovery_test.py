"""However data preparation is run, in one process or many, at once or killed in between, the artifact is the same."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format

from finecut.dataprep import local_processes, segment_runner, segment_work, segments, shard_files, stage
from finecut.dataprep.segment_files import SegmentWriter
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import Outcome
from finecut.dataprep.testing import MARKED_TEMPLATE, write_tiny_tokenizer
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, resolve
from finecut.proto.run import RunFolder, files, ray_session
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
    folder = start_ray()
    yield sys.modules["ray"]
    sys.modules["ray"].shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def start_ray() -> Path:
    """A Ray like the launcher's; returns its folder."""
    folder = ray_session.make_folder()
    os.environ.update(ray_session.environment(ray_session.write_token(folder)))
    import ray

    ray.init(**ray_session.arguments(folder, 2, 128 << 20))
    return folder


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


@pytest.fixture(params=["processes", "ray"])
def many(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work goes to several processes, of either kind."""
    if request.param == "ray":
        request.getfixturevalue("ray")
        monkeypatch.setattr(segment_runner, "_ray_is_there", lambda: True)
    else:
        use_processes(monkeypatch)


def use_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_runner, "MIN_BYTES_TO_FORK", 1)
    monkeypatch.setattr(local_processes, "num_cores", lambda: 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> artifact_pb2.Artifact:
    """What one process makes of the input at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "SEGMENT_BYTES", SMALL_SEGMENT_BYTES)
        patch.setattr(segment_work, "BATCH_RECORDS", 16)
        return in_turn(write_job(tmp_path_factory.mktemp("undisturbed"), tokenizer))


def in_turn(job: job_pb2.JobConfig) -> artifact_pb2.Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment_runner, "_execution", lambda todo: segment_runner._in_turn)
        return stage.run_stage(job, "prepare")


def test_many_processes_give_the_bytes_of_one(
    tmp_path: Path, tokenizer: Path, undisturbed: artifact_pb2.Artifact, many: None
) -> None:
    assert undisturbed.data.sources[0].filtered_record_counts["duplicates"] == 50
    job = write_job(tmp_path, tokenizer)
    found = stage.run_stage(job, "prepare")
    assert contents(found) == contents(undisturbed)
    assert found.data == undisturbed.data
    assert steps(job)[-1] == NUM_RECORDS
    assert not (RunFolder.of(job).stage("prepare") / "work").exists()


def test_bad_records_are_the_same_in_many_processes(tmp_path: Path, tokenizer: Path, many: None) -> None:
    job = write_job(tmp_path, tokenizer, "error_budget { max_records: 3 }")
    lines = (tmp_path / "b.jsonl").read_text().splitlines()
    for number in (2, 50, 51, 250):
        lines[number] = "{torn"
    lines[299] = json.dumps({"messages": "x" * 10_000_000})
    (tmp_path / "b.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError) as in_many:
        stage.run_stage(job, "prepare")
    with pytest.raises(UserError) as alone:
        in_turn(job)
    assert str(in_many.value) == str(alone.value)
    assert f"{tmp_path}/b.jsonl:3: not JSON" in str(in_many.value)
    assert f"{tmp_path}/b.jsonl:251: not JSON" in str(in_many.value)


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


def test_a_wrong_mask_is_named(tmp_path: Path, tokenizer: Path, many: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "rehearse", lambda worker: None)
    job = write_job(tmp_path, tokenizer)
    (tmp_path / "template").write_text(MARKED_TEMPLATE.replace("'<|im_end|>' }}{% endgen", "'' }}{% endgen"))
    job.stages[0].data_prep.tokenization.chat_template_file = str(tmp_path / "template")
    with pytest.raises(UserError, match="no special token ends it"):
        stage.run_stage(job, "prepare")


def test_a_worker_that_is_killed_is_replaced(
    tmp_path: Path,
    tokenizer: Path,
    undisturbed: artifact_pb2.Artifact,
    many: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, mark, parent = segment_runner._run_segment, tmp_path / "killed", os.getpid()

    def fatal_run(worker: SegmentWorker, folder: Path, segment: segments.Segment) -> str:
        assert os.getpid() != parent
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run(worker, folder, segment)

    monkeypatch.setattr(segment_runner, "_run_segment", fatal_run)
    if segment_runner._ray_is_there():
        # The task finds it in its own process, where nothing is patched, so it carries it along.
        task = segment_runner._ray_task
        monkeypatch.setattr(
            segment_runner, "_ray_task", lambda row, **named: _patched_task(task, fatal_run, row, **named)
        )
    found = stage.run_stage(write_job(tmp_path, tokenizer), "prepare")
    assert contents(found) == contents(undisturbed)
    assert mark.exists()


def _patched_task(task: Any, run: Any, row: dict[str, Any], **named: Any) -> Any:
    from finecut.dataprep import segment_runner

    segment_runner._run_segment = run
    return task(row, **named)


WHERE = {
    "between segments": {4},
    "in a segment": {4},
    "in a note": {4},
    "in shards": set(range(1, NUM_SEGMENTS)),
    "with processes at work": set(range(4, NUM_SEGMENTS + 1)),
    "with Ray at work": set(range(4, NUM_SEGMENTS + 1)),
}


def run_and_be_killed(where: str, tokenizer: Path, place: Path) -> None:
    """Calls `main` in a process of its own, which is a fork of one that has imported all that it needs."""
    multiprocessing.set_forkserver_preload([__name__, "transformers.models.auto.tokenization_auto"])
    process = multiprocessing.get_context("forkserver").Process(target=main, args=(where, tokenizer, place))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("where", WHERE)
def test_a_killed_run_continues_to_the_same_bytes(
    tmp_path: Path, tokenizer: Path, undisturbed: artifact_pb2.Artifact, where: str
) -> None:
    job = write_job(folder(tmp_path, "killed"), tokenizer)
    run_and_be_killed(where, tokenizer, tmp_path / "killed")
    if where == "with Ray at work":
        end_ray(Path((tmp_path / "killed/ray").read_text()))
    work = RunFolder.of(job).stage("prepare") / "work/segments"
    finished = {int(path.stem) for path in work.glob("*.json")}
    assert len(finished) in WHERE[where]
    if where == "in shards":
        assert list(RunFolder.of(job).artifact("prepare").glob(f"*{shard_files.PARTIAL_SUFFIX}"))

    with pytest.MonkeyPatch.context() as patch:
        written: list[int] = []
        run = SegmentWorker.run
        patch.setattr(SegmentWorker, "run", lambda *args: (written.append(args[1].number), run(*args))[1])
        patch.setattr(stage, "rehearse", lambda worker: None)
        found = stage.run_stage(job, "prepare")
    assert contents(found) == contents(undisturbed)
    assert found.data == undisturbed.data
    assert written == [number for number in range(NUM_SEGMENTS) if number not in finished]
    assert not work.parent.exists()


def end_ray(folder: Path) -> None:
    """As the launcher does before it starts anew: Ray's workers outlive a killed driver for a while, and write."""
    mark = f"RAY_AUTH_TOKEN_PATH={folder}/token".encode()
    deadline = time.monotonic() + 1500
    while processes := [path for path in Path("/proc").glob("[0-9]*/environ") if mark in read(path).split(b"\0")]:
        assert time.monotonic() < deadline
        for path in processes:
            with suppress(ProcessLookupError):
                os.kill(int(path.parent.name), signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder)


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_finished_segments_of_other_inputs_are_not_taken_over(tmp_path: Path, tokenizer: Path) -> None:
    job = write_job(tmp_path, tokenizer)
    run_and_be_killed("between segments", tokenizer, tmp_path)
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

    if where == "with Ray at work":
        (place / "ray").write_text(str(start_ray()))
    if "at work" in where:
        segment_runner.MIN_BYTES_TO_FORK = 1
        local_processes.num_cores = lambda: 2
        yielded: list[Outcome] = []
        outcome_of = segment_runner._outcome

        def outcome_or_die(*arguments: Any) -> Outcome:
            yielded.append(outcome_of(*arguments))
            return die() or yielded[-1] if len(yielded) == 4 else yielded[-1]

        segment_runner._outcome = outcome_or_die

    add = SegmentWriter.add
    SegmentWriter.finish = finish_or_die  # type: ignore[method-assign]
    SegmentWriter.add = add_or_die  # type: ignore[method-assign]
    files.write_atomically = write_or_die
    shard_files.SplitWriter._add_row = add_row_or_die  # type: ignore[method-assign]
    stage.run_stage(job, "prepare")
