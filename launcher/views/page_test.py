"""The page of a run: what stands on it, and runs that are torn, empty, at work or of other versions."""

import os
from pathlib import Path

import pytest

from finecut.launcher import journal, runs
from finecut.launcher.journal import Journal
from finecut.launcher.views import page, testing
from finecut.launcher.views.run_view import RunReader
from finecut.proto.config import UserError
from finecut.proto.run import artifacts


def rendered(root: Path) -> str:
    return page.render(RunReader(root).read())


def test_the_page_is_one_file_without_outside_resources(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    text = page.write(run.root).read_text()
    assert run.page == run.root / "report.html" and run.page.is_file()
    assert "http" not in text.replace("http://www.w3.org", "") and "<script" not in text and "src=" not in text
    assert text.count("<polyline") >= 4


def test_a_finished_run_shows_metrics_samples_and_data(tmp_path: Path) -> None:
    text = rendered(testing.write_run(tmp_path).root)
    assert "evaluation loss" in text and "-60.0%" in text
    assert "What is &lt;AI&gt;?" in text and "A &amp; B." in text and "before training" in text
    assert 'href="stages/prepare/artifact/report.html"' in text
    assert "the job declares no price" in text


def test_changes_are_shares_of_what_is_positive_and_else_differences() -> None:
    metrics = {
        "loss": 2.0,
        "first_loss": 4.0,
        "margin": 0.5,
        "first_margin": 0.0,
        "chosen": -190.0,
        "first_chosen": -188.0,
    }
    found = {metric.name: (metric.before, metric.change) for metric in page.final_metrics(metrics | {"accuracy": 1.0})}
    assert found == {"chosen": ("-188", "-2"), "loss": ("4", "-50.0%"), "margin": ("0", "+0.5"), "accuracy": ("", "")}
    assert list(found)[-1] == "accuracy", "what was measured before training too comes first"


def test_an_export_shows_its_own_numbers_and_not_again_those_of_its_model(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    artifact = artifacts.read(run.artifact("export"))
    artifact.model.metrics["logit_max_difference"] = 0.25
    artifacts.write(run.artifact("export"), artifact)
    section = rendered(run.root).partition('id="stage-export"')[2].partition("</table>")[0]
    assert "logit max difference" in section and "evaluation loss" not in section and "before</th>" not in section


def test_a_declared_price_is_multiplied_with_the_time(tmp_path: Path) -> None:
    text = rendered(testing.write_run(tmp_path, overrides=("cluster.price_usd_per_hour=36000",)).root)
    assert "at $36,000.00 an hour" in text


def test_the_run_before_is_the_newest_that_started_earlier(tmp_path: Path) -> None:
    for name, steps in (("a", 3), ("b", 5), ("c", 7)):
        testing.write_run(tmp_path, name, (f"stages.sft.sft.training.max_steps={steps}",))
    text = rendered(tmp_path / "runs" / "b")
    assert "Config against the run before, a" in text
    assert "<td>sft.training.max_steps</td><td>3</td><td>5</td>" in text
    assert "Config against" not in rendered(tmp_path / "runs" / "a")


def test_a_torn_run_before_is_passed_over(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        run = testing.write_run(tmp_path, name)
    (tmp_path / "runs" / "b" / "job.textproto").write_text("name: [")
    assert "Config against the run before, a" in rendered(run.root)


def test_a_run_at_work_shows_its_progress_and_one_that_failed_its_reason(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        Journal(run).started("prepare")
        testing.write_steps(run, "prepare", range(1, 5))
        assert "<progress" in rendered(run.root) and "4 of 60 records" in rendered(run.root)
    assert "interrupted" in rendered(run.root)
    with runs.opened(job):
        Journal(run).failed("prepare", "chat.jsonl:3: not <JSON>")
    assert "chat.jsonl:3: not &lt;JSON&gt;" in rendered(run.root)


def test_a_run_that_never_started_is_a_page_too(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        pass
    text = rendered(run.root)
    assert "pending" in text and 'class="times"' not in text


def test_logs_cut_in_the_middle_show_what_is_whole(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    for log in (run.events("sft"), journal.path(run)):
        content = log.read_bytes()
        log.write_bytes(content[: len(content) // 2] + b"\xff\x00garbage\n{}\n")
    text = rendered(run.root)
    assert "succeeded" in text and "<polyline" in text


def test_a_reader_takes_over_only_what_is_new(tmp_path: Path) -> None:
    run, job = testing.open_run(tmp_path)
    with runs.opened(job):
        Journal(run).started("sft")
        testing.write_steps(run, "sft", range(1, 3))
        reader = RunReader(run.root)
        (first,) = [stage.history.step for stage in reader.read().stages if stage.name == "sft"]
        testing.write_steps(run, "sft", range(3, 6))
        (second,) = [stage.history for stage in reader.read().stages if stage.name == "sft"]
    assert (first, second.step, second.curves["loss"].steps) == (2, 5, [1, 2, 3, 4, 5])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no run"),
        ("", "is torn, or of another version"),
        ('name: "x" stages { name: "a" }', "is torn, or of another version"),
        ('name: "x" field_of_the_future: 3', "cannot be read back"),
        ('name: "x" stages { na', "cannot be read back"),
    ],
)
def test_folders_without_a_readable_run_are_refused_in_a_sentence(
    tmp_path: Path, config: str | None, message: str
) -> None:
    if config is not None:
        (tmp_path / "job.textproto").write_text(config)
    with pytest.raises(UserError, match=message):
        rendered(tmp_path)


def test_a_moved_run_is_read_where_it_lies(tmp_path: Path) -> None:
    run = testing.write_run(tmp_path)
    os.rename(run.root, tmp_path / "moved")
    text = rendered(tmp_path / "moved")
    assert "<h1>moved</h1>" in text and text.count("succeeded") > 5
