"""Artifacts, event logs and fingerprints."""

import json
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.run import RunFolder, artifacts, fingerprint
from finecut.proto.run.events import EventLog, follow


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A written artifact with two files."""
    folder = tmp_path / "artifact"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.bin").write_bytes(b"content")
    (folder / "b.txt").write_text("text")
    artifacts.write(folder, artifact_pb2.Artifact(job="job", stage="stage"))
    return folder


class TestArtifact:
    def test_manifest_lists_every_file(self, artifact: Path) -> None:
        read = artifacts.read(artifact, verify=True)
        assert [file.path for file in read.files] == ["b.txt", "deep/a.bin"]
        assert read.files[1].bytes == 7
        assert read.HasField("finished_at")

    def test_without_a_manifest_is_unfinished(self, artifact: Path) -> None:
        (artifact / "manifest.json").unlink()
        with pytest.raises(artifacts.ArtifactError, match="run its stage first"):
            artifacts.read(artifact)

    def test_missing_and_shortened_files_are_named(self, artifact: Path) -> None:
        (artifact / "b.txt").unlink()
        (artifact / "deep" / "a.bin").write_bytes(b"cont")
        with pytest.raises(artifacts.ArtifactError, match=r"b.txt is missing; deep/a.bin has 4 bytes instead of 7"):
            artifacts.read(artifact)

    def test_changed_content_is_found_when_verified(self, artifact: Path) -> None:
        (artifact / "deep" / "a.bin").write_bytes(b"CONTENT")
        artifacts.read(artifact)
        with pytest.raises(artifacts.ArtifactError, match="another content"):
            artifacts.read(artifact, verify=True)

    def test_torn_manifest_is_refused(self, artifact: Path) -> None:
        manifest = artifact / "manifest.json"
        manifest.write_text(manifest.read_text()[:-20])
        with pytest.raises(artifacts.ArtifactError, match="damaged"):
            artifacts.read(artifact)


class TestEvents:
    def test_are_followed_as_they_come(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        assert follow(path) == ([], 0)
        with EventLog(path, "sft") as log:
            log.message("hello")
            first, position = follow(path)
            log.step(1, 10, {"loss": 2.5})
        second, _ = follow(path, position)
        assert [event.message for event in first] == ["hello"]
        assert second[0].step.values["loss"] == 2.5
        assert (second[0].sequence, second[0].stage) == (2, "sft")

    def test_sequence_continues_after_a_restart_and_a_torn_line(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        with EventLog(path, "sft") as log:
            log.message("one")
        with path.open("a") as file:
            file.write('{"sequence": "2", "mess')
        with EventLog(path, "sft") as log:
            log.message("three")
        events, _ = follow(path)
        assert [event.message for event in events] == ["one", "three"]
        assert events[-1].sequence == 3

    def test_an_unfinished_line_waits(self, tmp_path: Path) -> None:
        path = tmp_path / "events.jsonl"
        with EventLog(path, "sft") as log:
            log.message("one")
        whole = path.read_text()
        path.write_text(whole + whole[:10])
        events, position = follow(path)
        assert len(events) == 1
        path.write_text(whole + whole)
        assert len(follow(path, position)[0]) == 1


class TestFingerprint:
    JOB = """name: "j" stages { name: "a" data_prep { seed: 1 } }
             stages { name: "b" sft { data: "@a" training { max_steps: 3 metrics { every_steps: 1 } } } }"""

    def of(self, change: tuple[str, str] = ("", ""), stage: str = "b") -> str:
        return fingerprint.of_stage(text_format.Parse(self.JOB.replace(*change), job_pb2.JobConfig()), stage)

    def test_changes_with_the_stage_and_with_what_is_upstream(self) -> None:
        assert len({self.of(), self.of(("max_steps: 3", "max_steps: 4")), self.of(("seed: 1", "seed: 2"))}) == 3

    def test_ignores_what_is_safe_to_change_and_what_is_downstream(self) -> None:
        assert self.of() == self.of(("every_steps: 1", "every_steps: 9"))
        assert self.of(stage="a") == self.of(("max_steps: 3", "max_steps: 4"), stage="a")


def test_run_folder_locates_stages_and_paths() -> None:
    run = RunFolder.of(job_pb2.JobConfig(name="j", storage={"root": "/runs"}))
    assert run.locate("@prepare") == Path("/runs/j/stages/prepare/artifact")
    assert run.locate("/models/x") == Path("/models/x")


def test_events_are_plain_json_lines(tmp_path: Path) -> None:
    with EventLog(tmp_path / "events.jsonl", "prepare") as log:
        log.message("two\nlines")
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["message"] == "two\nlines"
