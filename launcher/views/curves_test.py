"""Groups of curves: each curve stands in one, and those that everybody looks at come first."""

from dataclasses import replace

from finecut.launcher.views.curves import LIMIT, groups, select, steady, title, unit
from finecut.launcher.views.history import Curve, StageHistory
from finecut.launcher.views.plots import MAX_LINES

NAMES = (
    "evaluation_loss",
    "loss",
    "loss/chats",
    "loss/texts",
    "tokens_per_second",
    "peak_memory_gib",
    LIMIT,
    "mfu",
    "data_wait_seconds",
    *(f"memory/rank{rank}/peak_gib" for rank in range(8)),
)


def history() -> StageHistory:
    return StageHistory(curves={name: Curve([1], [1.0]) for name in NAMES})


def test_every_curve_stands_in_one_group_but_the_limit() -> None:
    shown = [name for group in groups(history()) for name in group.names]
    assert sorted(shown) == sorted(set(NAMES) - {LIMIT})


def test_loss_comes_first_with_that_of_evaluations() -> None:
    first = groups(history())[0]
    assert (first.title, first.names, first.is_main) == ("Loss", ("loss", "evaluation_loss"), True)


def test_parts_of_a_step_of_reinforcement_share_a_plot() -> None:
    names = ("reward", "loss", "step_seconds", "rollout_seconds", "train_seconds", "engine_utilisation", "goodput")
    found = groups(StageHistory(curves={name: Curve([1], [1.0]) for name in names}))
    assert [(group.title, len(group.names)) for group in found] == [
        ("Loss", 1),
        ("Reward", 1),
        ("Use of the hardware", 2),
        ("Time of a step", 3),
    ]


def test_curves_of_one_head_share_a_plot_while_there_is_room() -> None:
    found = [group for group in groups(history()) if not group.is_main]
    assert ("loss/chats", "loss/texts") in [group.names for group in found]
    assert [len(group.names) for group in found if group.title == "memory"] == [MAX_LINES, 8 - MAX_LINES]


def test_labels_are_words() -> None:
    (group,) = [group for group in groups(history()) if "loss/chats" in group.names]
    assert list(select(history(), group)) == ["chats", "texts"]
    assert title("tokens_per_second") == "tokens per second"
    assert (title("memory/train/peak_gib"), unit("memory/train/peak_gib")) == ("memory: train: peak", "GiB")


def test_what_never_changes_is_a_number_and_no_curve() -> None:
    curves = {"probe/a": Curve([1, 2], [1.0, 1.0]), "probe/b": Curve([1, 2], [1.0, 3.0])}
    (group,) = groups(StageHistory(curves=curves))
    changing, same = steady(StageHistory(curves=curves), group)
    assert changing is not None and changing.names == ("probe/b",) and same == {"a": 1.0}
    assert steady(StageHistory(curves=curves), replace(group, names=("probe/a",))) == (None, {"a": 1.0})


def test_the_unit_of_the_loss_is_that_of_the_recipe() -> None:
    units = {kind: groups(history(), kind)[0].unit for kind in ("sft", "dpo", "grpo")}
    assert units == {"sft": "nats a trained token", "dpo": "nats a pair", "grpo": ""}
