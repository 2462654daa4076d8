"""Schedules: order, what fits side by side, and what never starts."""

from pathlib import Path

import pytest

from finecut.launcher import testing
from finecut.launcher.scheduling import Schedule, Share, Task, given, tasks
from finecut.proto.config import ConfigError, load_job

WHOLE = Share(8, 2)


def started(*tasks: Task, whole: Share = WHOLE, done: str = "") -> list[str]:
    return names(Schedule(tasks, whole, done))


def names(schedule: Schedule) -> list[str]:
    return [task.name for task in schedule.start()]


def test_stages_start_when_their_needs_are_done() -> None:
    schedule = Schedule([Task("a"), Task("b", frozenset("a"))], WHOLE)
    assert names(schedule) == ["a"] and names(schedule) == []
    schedule.end("a", succeeded=True)
    assert names(schedule) == ["b"]


def test_what_is_done_before_is_not_started() -> None:
    assert started(Task("a"), Task("b", frozenset("a")), done="a") == ["b"]


def test_what_needs_a_failed_stage_never_starts() -> None:
    schedule = Schedule([Task("a"), Task("b", frozenset("a"))], WHOLE)
    names(schedule)
    schedule.end("a", succeeded=False)
    assert names(schedule) == [] and not schedule.running


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


def test_freed_resources_go_to_the_stage_that_most_others_wait_for() -> None:
    one = Share(1, 2)
    tasks = [Task("a", share=one), Task("last", share=one), Task("b", share=one), Task("c", frozenset("b"), one)]
    schedule = Schedule(tasks, WHOLE)
    assert names(schedule) == ["b"]
    schedule.end("b", succeeded=True)
    assert names(schedule) == ["a"], "now all are the last of their row"


def test_a_job_of_many_layers_is_scheduled_at_once() -> None:
    layers = [[f"{layer}-{number}" for number in range(4)] for layer in range(40)]
    all_tasks = [
        Task(name, frozenset(layers[depth - 1] if depth else ()), Share(1, 0))
        for depth, layer in enumerate(layers)
        for name in layer
    ]
    assert started(*all_tasks) == layers[0]


def test_gpus_that_a_stage_at_work_gives_back_go_to_a_waiting_one() -> None:
    schedule = Schedule([Task("grpo", share=Share(4, 8)), Task("measure", share=Share(4, 2))], Share(8, 8))
    assert names(schedule) == ["grpo"]
    schedule.give_back("grpo", 1)
    assert names(schedule) == []
    schedule.give_back("grpo", 3)
    assert names(schedule) == ["measure"]


def test_gpus_that_are_claimed_again_go_to_nobody_else() -> None:
    tasks = [Task("grpo", share=Share(2, 8)), Task("one", share=Share(2, 2)), Task("two", share=Share(2, 2))]
    schedule = Schedule(tasks, Share(8, 8))
    assert names(schedule) == ["grpo"]
    schedule.give_back("grpo", 2)
    assert names(schedule) == ["one"]
    schedule.give_back("grpo", 0)
    schedule.end("one", succeeded=True)
    assert names(schedule) == []
    schedule.end("grpo", succeeded=True)
    assert names(schedule) == ["two"]


def test_a_stage_with_a_range_gets_what_is_free_of_it() -> None:
    tasks = [Task("a", share=Share(1, 3)), Task("b", share=Share(1, 2), more_gpus=(8, 4))]
    assert [task.share for task in Schedule(tasks, Share(8, 8)).start()] == [Share(1, 3), Share(1, 4)]
    assert [task.share for task in Schedule(tasks[1:], Share(8, 8)).start()] == [Share(1, 8)]
    assert started(*tasks, whole=Share(8, 4)) == ["a"]


def test_freed_resources_go_to_the_first_stage_in_order_that_fits() -> None:
    shares = {"a": Share(4, 1), "b": Share(4, 1), "large": Share(4, 2), "small": Share(4, 1)}
    schedule = Schedule([Task(name, share=share) for name, share in shares.items()], WHOLE)
    assert names(schedule) == ["a", "b"]
    schedule.end("a", succeeded=True)
    assert names(schedule) == ["small"]  # the large one waits for both GPUs
    schedule.end("b", succeeded=False)
    schedule.end("small", succeeded=True)
    assert names(schedule) == ["large"]


def grown(schedule: Schedule) -> list[tuple[str, int]]:
    return [(task.name, task.share.gpus) for task in schedule.grow() if task.share]


def test_a_stage_at_work_grows_into_what_is_freed_once_nobody_waits_for_it() -> None:
    tasks = [
        Task("first", share=Share(1, 3)),
        Task("sft", share=Share(1, 2), more_gpus=(8, 6, 3), grows=True),
        Task("fixed", share=Share(1, 2), more_gpus=(8,)),
        Task("next", frozenset({"first"}), share=Share(1, 8)),
    ]
    schedule = Schedule(tasks[:3], Share(8, 8))
    assert [(task.name, task.share) for task in schedule.start()][1:] == [("sft", Share(1, 3)), ("fixed", Share(1, 2))]
    assert grown(schedule) == []
    schedule.end("first", succeeded=True)
    assert grown(schedule) == [("sft", 6)] and grown(schedule) == []
    schedule.end("fixed", succeeded=True)
    assert grown(schedule) == [("sft", 8)]

    schedule = Schedule(tasks, Share(8, 8))
    assert names(schedule) == ["first", "sft", "fixed"]
    schedule.end("first", succeeded=True)
    assert names(schedule) == [] and grown(schedule) == [], "the next stage waits for all of them"


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


@pytest.mark.parametrize(
    "resources",
    [
        "",
        "cpu_count: 0",
        "cpu_count: 2 gpu_count: 0",
        "cpu_count: 2 max_gpu_count: 2",
        "cpu_count: 2 gpu_count: 2 max_gpu_count: 1",
    ],
)
def test_shares_that_say_nothing_are_refused(tmp_path: Path, resources: str) -> None:
    stages = STAGES.replace("cpu_count: 2", resources)
    with pytest.raises(ConfigError, match=r"stages.*resources"):
        load_job(testing.write_job(tmp_path, stages=stages))


def test_a_range_is_of_gpus_that_cut_the_batch_and_the_executor_sees_what_was_given(tmp_path: Path) -> None:
    stages = STAGES.replace('data: "@prepare"', 'data: "@prepare" training { batch { global_blocks: 12 } }')
    stages = stages.replace("cpu_count: 2", "cpu_count: 2 gpu_count: 2 max_gpu_count: 8")
    job = load_job(testing.write_job(tmp_path, stages=stages))
    [task] = tasks(job, ["sft"], Share(8, 8))
    assert (task.share, task.more_gpus, task.grows) == (Share(2, 2), (6, 4, 3), True)
    seen = given(job, "sft", Share(2, 6)).stages[1].resources
    assert (seen.gpu_count, seen.HasField("max_gpu_count")) == (6, False)
