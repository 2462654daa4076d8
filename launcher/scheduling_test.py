"""Schedules: order, what fits side by side, and what never starts."""

from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.scheduling import Schedule, Share, Task, tasks
from finecut.proto.config import ConfigError, load_job

WHOLE = Share(8, 2)


def started(*tasks: Task, whole: Share = WHOLE, done: str = "") -> list[str]:
    return list(Schedule(tasks, whole, done).start())


def test_stages_start_when_their_needs_are_done() -> None:
    schedule = Schedule([Task("a"), Task("b", frozenset("a"))], WHOLE)
    assert list(schedule.start()) == ["a"] and list(schedule.start()) == []
    schedule.end("a", succeeded=True)
    assert list(schedule.start()) == ["b"]


def test_what_is_done_before_is_not_started() -> None:
    assert started(Task("a"), Task("b", frozenset("a")), done="a") == ["b"]


def test_what_needs_a_failed_stage_never_starts() -> None:
    schedule = Schedule([Task("a"), Task("b", frozenset("a"))], WHOLE)
    list(schedule.start())
    schedule.end("a", succeeded=False)
    assert list(schedule.start()) == [] and not schedule.running


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([None, None], "a"),
        ([Share(4, 0), None], "a"),
        ([None, Share(1, 0)], "a"),
        ([Share(4, 0), Share(4, 0)], "ab"),
        ([Share(4, 0), Share(5, 0)], "a"),
        ([Share(4, 0), Share(5, 0), Share(4, 0)], "ac"),
        ([Share(1, 2), Share(1, 1)], "a"),
        ([Share(1, 1), Share(1, 1), Share(1, 0)], "abc"),
        ([Share(64, 8), Share(1, 0)], "a"),
    ],
)
def test_stages_run_side_by_side_while_all_declare_what_they_take_and_it_fits(
    shares: list[Share | None], expected: str
) -> None:
    assert started(*(Task(name, share=share) for name, share in zip("abc", shares, strict=False))) == list(expected)


def test_freed_resources_go_to_the_first_stage_in_order_that_fits() -> None:
    shares = {"a": Share(4, 1), "b": Share(4, 1), "large": Share(4, 2), "small": Share(4, 1)}
    schedule = Schedule([Task(name, share=share) for name, share in shares.items()], WHOLE)
    assert list(schedule.start()) == ["a", "b"]
    schedule.end("a", succeeded=True)
    assert list(schedule.start()) == ["small"]  # the large one waits for both GPUs
    schedule.end("b", succeeded=False)
    schedule.end("small", succeeded=True)
    assert list(schedule.start()) == ["large"]


STAGES = """
stages {
  name: "prepare"
  data_prep { sources { paths: "FOLDER/chat.jsonl" } tokenization { tokenizer: "FOLDER/model" } }
  resources { cpu_count: 3 }
}
stages {
  name: "sft" sft { model { path: "FOLDER/model" } data: "@prepare" }
  resources { cpu_count: 2 }
}
stages { name: "export" export { model: "@sft" } after: "@prepare" }
"""


def test_tasks_follow_the_job(tmp_path: Path) -> None:
    job = load_job(testing.write_job(tmp_path, stages=STAGES))
    assert tasks(job, ["prepare", "sft", "export"], WHOLE) == [
        Task("prepare", frozenset(), Share(3, 0)),
        Task("sft", frozenset({"prepare"}), Share(2, 2)),
        Task("export", frozenset({"sft", "prepare"}), None),
    ]


@pytest.mark.parametrize("resources", ["", "cpu_count: 0", "cpu_count: 2 gpu_count: 0"])
def test_shares_that_are_empty_are_refused(tmp_path: Path, resources: str) -> None:
    stages = STAGES.replace("cpu_count: 2", resources)
    with pytest.raises(ConfigError, match=r"stages.*resources"):
        load_job(testing.write_job(tmp_path, stages=stages))
