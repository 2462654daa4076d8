"""The example with a tiny model, and with its code in a folder far from here: everything is found by the job alone."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from finecut.dataprep.stage import run_stage as prepare
from finecut.proto import artifact_pb2, job_pb2
from finecut.proto.config import UserError, load_job
from finecut.proto.run import RunFolder, artifacts
from finecut.proto.run.events import follow
from finecut.trainer.rewards.answer import Answer
from finecut.trainer.rewards.config import PythonFunction
from finecut.trainer.rewards.function import FunctionScorer
from finecut.trainer.rollout import environment
from finecut.trainer.stage import run_stage as train
from finecut.trainer.testing import write_tiny_llama

HERE = Path(__file__).parent
NAMES = ("notes_reader", "focal_loss", "restarts", "simpo", "brevity", "guessing")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, and a copy of the code under a name of its own."""
    folder = tmp_path_factory.mktemp("extensions")
    write_tiny_llama(folder / "model")
    shutil.copytree(HERE / "code", folder / "mine")
    return folder


@pytest.fixture(autouse=True)
def own_path() -> Iterator[None]:
    """Each test starts without the user's code."""
    before = list(sys.path)
    yield
    sys.path[:] = before
    for name in NAMES:
        sys.modules.pop(name, None)


def load(tiny: Path, *changes: str, runs: str = "runs") -> job_pb2.JobConfig:
    model = str(tiny / "model")
    steps = [f"stages.{name}.training.max_steps=12" for name in ("sft.sft", "simpo.custom")]
    places = [
        f"code.paths={tiny / 'mine'}",
        f"stages.notes.data_prep.tokenization.tokenizer={model}",
        f"stages.pairs.data_prep.tokenization.tokenizer={model}",
        f"stages.sft.sft.model.path={model}",
        "defaults.optimizer.learning_rate=1e-2",
    ]
    return load_job(HERE / "job.textproto", [*places, *steps, *changes], storage_root=str(tiny / runs))


def learning_rates(job: job_pb2.JobConfig, stage: str) -> list[float]:
    events = follow(RunFolder.of(job).events(stage))[0]
    return [event.step.values["learning_rate"] for event in events if event.WhichOneof("event") == "step"]


def test_reader_loss_schedule_and_recipe_of_the_users_run_from_a_folder_of_theirs(tiny: Path) -> None:
    job = load(tiny)
    assert prepare(job, "notes").data.sources[0].record_count == 16
    assert prepare(job, "pairs").data.splits[0].document_count == 32

    artifact = train(job, "sft")
    assert artifact is not None and "." in artifact.fingerprints.code.partition("+")[2]
    focal, plain = artifact.model.metrics["loss"], artifact.model.metrics["cross_entropy"]
    assert 0 < focal < plain < 6.2
    rates = learning_rates(job, "sft")
    assert rates == pytest.approx([1e-2 * 0.5 * (1 + math.cos(math.pi * (n % 6) / 6)) for n in range(12)])

    artifact = train(job, "simpo")
    assert artifact is not None and artifact.model.adapter
    assert artifact.model.metrics["accuracy"] > 0.9
    for name in NAMES[1:4]:
        assert str(sys.modules[name].__file__).startswith(str(tiny))


def test_the_code_cannot_be_had_without_the_jobs_word() -> None:
    """What the test above imports is on no path otherwise."""
    found = subprocess.run([sys.executable, "-c", "import focal_loss"], capture_output=True, text=True, check=False)
    assert "ModuleNotFoundError" in found.stderr


def test_code_that_has_changed_is_another_version(tiny: Path) -> None:
    job = load(tiny, runs="changed")
    prepare(job, "notes")
    first = artifacts.read(RunFolder.of(job).artifact("notes")).fingerprints.code
    shutil.copytree(tiny / "mine", tiny / "changed code")
    (tiny / "changed code/focal_loss.py").write_text("")
    other = load(tiny, f"code.paths={tiny / 'changed code'}", runs="other")
    assert prepare(other, "notes").fingerprints.code != first
    with pytest.raises(UserError, match=r"sft.loss: 'focal_loss:FocalLoss': focal_loss has no class or function"):
        train(other, "sft")


@pytest.mark.parametrize(
    ("stage", "change", "sentence"),
    [
        ("sft", "stages.sft.sft.loss.path=gone:Loss", "sft.loss: 'gone:Loss': importing gone failed"),
        ("sft", "stages.sft.sft.loss.path=restarts:schedule", "is called with 0 arguments, gamma, and takes"),
        ("sft", "stages.sft.sft.training.schedule.custom.path=focal_loss:FocalLoss", "custom: .* cycles"),
        ("notes", "stages.notes.data_prep.sources[0].reader.path=focal_loss:FocalLoss", "cannot be called with a path"),
        ("notes", "stages.notes.data_prep.sources[0].reader.path=simpo:SimPo", "is called with 0 arguments"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_work(tiny: Path, stage: str, change: str, sentence: str) -> None:
    job = load(tiny, change, runs=f"refused-{abs(hash(change))}")
    with pytest.raises(UserError, match=sentence):
        if stage != "notes":
            prepare(job, "notes")
            train(job, stage)
        else:
            prepare(job, stage)


def test_the_reward_is_found_on_the_path(tiny: Path) -> None:
    sys.path.append(str(tiny / "mine"))
    scorer = FunctionScorer(PythonFunction("brevity:reward", timeout_s=60))
    texts = ["Paris.", "Paris", "It is a long story that I shall tell now."]
    assert scorer.score([Answer("a/1", "?", text, {}) for text in texts]) == [1.0, 0.0, 0.0]
    scorer.close()


def test_the_environment_is_found_on_the_path_and_ends_where_the_guess_is_right(tiny: Path) -> None:
    sys.path.append(str(tiny / "mine"))
    guessing = environment.make(environment.load("guessing:Guessing"), "a/1", {"reference": "42"})
    replies = [environment.ask(guessing, "a/1", answer) for answer in ("well", "50?", "It is 7.", "42")]
    assert [[message["content"] for message in reply.messages] for reply in replies] == [
        ["Say a number."],
        ["Too high."],
        ["Too low."],
        [],
    ]
    assert [reply.is_done for reply in replies] == [False, False, False, True]


def test_the_files_of_the_example_are_data_of_documents_and_pairs(tiny: Path) -> None:
    job = load(tiny, runs="kinds")
    kinds = [prepare(job, stage).data.kind for stage in ("notes", "pairs")]
    assert kinds == [artifact_pb2.DataArtifact.DOCUMENTS, artifact_pb2.DataArtifact.PAIRS]
