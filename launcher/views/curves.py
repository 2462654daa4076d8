"""Which curves stand together, in which order, under which name."""

from collections.abc import Iterator
from dataclasses import dataclass

from finecut.launcher.views.history import Curve, StageHistory
from finecut.launcher.views.plots import MAX_LINES

_PARTS_OF_A_STEP = ("step_seconds", "rollout_seconds", "score_seconds", "train_seconds", "sync_seconds")
LIMIT = "memory_limit_gib"  # a constant, which would flatten the curve of what is used


@dataclass(frozen=True)
class Group:
    """Curves of one plot. `is_main`: it is among those that everybody looks at."""

    title: str
    unit: str
    names: tuple[str, ...]
    is_main: bool = True


def groups(history: StageHistory) -> list[Group]:
    """The curves of a stage, each in one group."""
    # Shorter names are what longer ones are about: "loss" stands before "evaluation_loss".
    names = sorted((name for name, curve in history.curves.items() if curve.steps), key=lambda name: (len(name), name))
    found = list(_main(names))
    taken = {name for group in found for name in group.names}
    others: dict[str, list[str]] = {}
    for name in sorted(set(names) - taken - {LIMIT}):
        others.setdefault(name.partition("/")[0], []).append(name)
    for head, members in others.items():
        for part in _batched(members, MAX_LINES):
            found.append(Group(title(head), "", part, is_main=False))
    return found


def _batched(names: list[str], size: int) -> Iterator[tuple[str, ...]]:
    """Tuples of `size` names; the last may be shorter."""
    return (tuple(names[start : start + size]) for start in range(0, len(names), size))


def select(history: StageHistory, group: Group) -> dict[str, Curve]:
    """A group's curves by the label that stands in the plot."""
    return {title(name): history.curves[name] for name in group.names}


def title(name: str) -> str:
    """A metric's name in words: "tokens_per_second" is "tokens per second"."""
    return name.replace("_", " ").replace("/", ": ")


def _main(names: list[str]) -> Iterator[Group]:
    rules = (
        ("Loss", "nats a trained token", lambda name: name in ("loss", "evaluation_loss")),
        ("Reward", "", lambda name: name.startswith("reward") and "/" not in name),
        ("Tokens per second", "all ranks", lambda name: name.endswith("tokens_per_second")),
        ("Memory", "GiB, fullest rank", lambda name: name == "peak_memory_gib"),
        ("Use of the hardware", "share", lambda name: name in ("mfu", "goodput", "engine_utilisation")),
        ("Time of a step", "seconds", lambda name: name in _PARTS_OF_A_STEP),
        ("Learning rate", "", lambda name: name == "learning_rate"),
        ("Gradient norm", "before clipping", lambda name: name == "gradient_norm"),
    )
    for heading, unit, matches in rules:
        if chosen := tuple(name for name in names if matches(name)):
            yield Group(heading, unit, chosen)
