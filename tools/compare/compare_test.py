"""Comparisons: of runs that differ, that are equal, that have nothing in common, and that are no runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.launcher import runs
from finecut.launcher.testing import environment, write_job
from finecut.launcher.views import testing
from finecut.proto.config import UserError, load_job, load_resolved
from finecut.proto.run import artifacts
from finecut.tools.browser.pages import browser, open_page
from finecut.tools.compare.comparison import Comparison, compare, write

RATE = "stages.sft.sft.training.optimizer.learning_rate"
OTHER = """
stages {
  name: "data"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, "a" and "b", of which b learned faster to a lower loss."""
    folder = tmp_path_factory.mktemp("runs")
    testing.write_run(folder, "a", (f"{RATE}=1e-4",), scale=2)
    testing.write_run(folder, "b", (f"{RATE}=3e-4", "stages.sft.sft.training.batch.micro_blocks=2"), scale=1)
    return folder


@pytest.fixture
def found(folder: Path) -> Comparison:
    return compare(folder / "runs" / "a", folder / "runs" / "b")


def test_fields_that_differ_are_named_with_their_stage(found: Comparison) -> None:
    assert {(each.path, each.left, each.right) for each in found.differences} == {
        ("sft.training.optimizer.learning_rate", "0.0001", "0.0003"),
        ("sft.training.batch.micro_blocks", "1", "2"),
    }


def test_curves_lie_over_each_other_and_the_main_ones_come_first(found: Comparison) -> None:
    plots = next(section.plots for section in found.sections if section.name == "sft")
    assert plots[0].title == "loss" and [line.label for line in plots[0].lines] == ["a", "b"]
    assert plots[0].lines[0].points != plots[0].lines[1].points


def test_final_metrics_have_their_change(found: Comparison) -> None:
    (row,) = [row for section in found.sections for row in section.metrics if row.name == "loss"][:1]
    assert (row.left, row.right, row.change) == ("2.2", "1.1", "-50.0%")


def test_results_of_evaluations_are_compared(tmp_path: Path, folder: Path) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.6)):
        shutil.copytree(folder / "runs" / name, tmp_path / name)
        manifest = tmp_path / name / "stages" / "export" / "artifact"
        artifact = artifacts.read(manifest)
        artifact.evaluation.results.add(task="sums", metric="accuracy", value=accuracy)
        artifacts.write(manifest, artifact)
    found = compare(tmp_path / "a", tmp_path / "b")
    (row,) = [row for section in found.sections for row in section.metrics if row.name == "sums: accuracy"]
    assert (row.left, row.right, row.change) == ("0.5", "0.6", "+20.0%")


def test_stages_are_matched_by_name_not_by_place(tmp_path: Path, folder: Path) -> None:
    job = load_resolved(folder / "runs" / "a" / "job.textproto")
    job.stages.sort(key=lambda stage: stage.name, reverse=True)
    (tmp_path / "job.textproto").write_text(text_format.MessageToString(job))
    assert compare(folder / "runs" / "a", tmp_path).differences == []


def test_runs_without_a_stage_in_common_say_so(tmp_path: Path, folder: Path) -> None:
    job = load_job(write_job(tmp_path, "other", OTHER))
    with runs.opened(job) as other:
        pass
    found = compare(folder / "runs" / "a", other.root)
    assert found.sections == [] and len(found.alone) == 4
    write(found, tmp_path / "page.html")
    assert "have no stage in common" in (tmp_path / "page.html").read_text()


def test_a_run_beside_itself_has_two_names_and_no_difference(folder: Path) -> None:
    found = compare(folder / "runs" / "a", folder / "runs" / "a")
    assert found.differences == [] and found.left != found.right


@pytest.mark.parametrize("content", [None, "", "name: ["])
def test_what_is_no_run_is_refused(tmp_path: Path, folder: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "job.textproto").write_text(content)
    with pytest.raises(UserError):
        compare(folder / "runs" / "a", tmp_path)


def test_the_page_is_whole_and_legible(tmp_path: Path, found: Comparison) -> None:
    write(found, tmp_path / "page.html")
    with browser() as chromium:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                page = open_page(chromium, (tmp_path / "page.html").as_uri(), width=width, scheme=scheme)
                assert (page.complaints, page.overflow(), page.illegible()) == ([], 0, [])


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["a", "b", "--storage_root=runs"], 0, "sft.training.optimizer.learning_rate"),
        (["runs/a", "runs/b", "--output=found.html"], 0, "found.html"),
        (["a", "c", "--storage_root=runs"], 2, "holds no run 'c'"),
        (["a"], 2, "two runs are needed"),
        (["runs/a", "runs/b", "--output=runs"], 2, "--output"),
    ],
)
def test_the_program_prints_tables_and_refuses_in_sentences(
    folder: Path, arguments: list[str], code: int, expected: str
) -> None:
    command = [sys.executable, "-m", "finecut.tools.compare.main", *arguments]
    variables = environment(BUILD_WORKING_DIRECTORY=str(folder))
    answer = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
    assert answer.returncode == code, answer.stderr
    assert expected in answer.stdout + answer.stderr and "Traceback" not in answer.stderr
