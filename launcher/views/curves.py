"""Which curves stand together, in which order, under which name."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from finecut.launcher.views.history import Curve, StageHistory
from finecut.launcher.views.plots import MAX_LINES

_PARTS_OF_A_STEP = ("step_seconds", "rollout_seconds", "score_seconds", "train_seconds", "sync_seconds")
_UNITS = {"_gib": "GiB", "_seconds": "seconds"}
_UNITS_OF_LOSS = {
    "sft": "nats a trained token",
    "distill": "nats a trained token",
    "dpo": "nats a pair",
    "reward_model": "nats a pair",
}
LIMIT = "memory_limit_gib"  # a constant, which would flatten the curve of what is used


@dataclass(frozen=True)
class Group:
    """Curves of one plot. `is_main`: it is among those that everybody looks at."""

    title: str
    unit: str
    names: tuple[str, ...]
    is_main: bool = True


def groups(history: StageHistory, kind: str = "sft") -> list[Group]:
    """The curves of a stage of some kind, each in one group."""
    # Shorter names are what longer ones are about: "loss" stands before "evaluation_loss".
    names = sorted((name for name, curve in history.curves.items() if curve.steps), key=lambda name: (len(name), name))
    found = list(_main(names, kind))
    taken = {name for group in found for name in group.names}
    others: dict[tuple[str, str], list[str]] = {}
    for name in sorted(set(names) - taken - {LIMIT}):
        others.setdefault((name.partition("/")[0], unit(name)), []).append(name)
    for (head, of_all), members in others.items():
        for part in _batched(members, MAX_LINES):
            found.append(Group(title(head), of_all, part, is_main=False))
    return found


def steady(history: StageHistory, group: Group) -> tuple[Group | None, dict[str, float]]:
    """The group without curves that never change, and their values by label: a number says as much as a level line."""
    labels = {name: label for label, name in _labels(group).items()}
    values = {name: {value for _, value in history.curves[name].finite()} for name in group.names}
    same = {labels[name]: found.pop() for name, found in values.items() if len(found) == 1}
    names = tuple(name for name in group.names if labels[name] not in same)
    return (replace(group, names=names) if names else None), same


def _batched(names: list[str], size: int) -> Iterator[tuple[str, ...]]:
    """Tuples of `size` names; the last may be shorter."""
    return (tuple(names[start : start + size]) for start in range(0, len(names), size))


def select(history: StageHistory, group: Group) -> dict[str, Curve]:
    """A group's curves by the label that stands in the plot."""
    return {label: history.curves[name] for label, name in _labels(group).items()}


def _labels(group: Group) -> dict[str, str]:
    """Names by label, without what the plot's title says already."""
    if all(title(name).startswith(f"{group.title}: ") for name in group.names):
        return {title(name).removeprefix(f"{group.title}: "): name for name in group.names}
    return {title(name): name for name in group.names}


def title(name: str) -> str:
    """A metric's name in words, without its unit: "tokens_per_second" is "tokens per second"."""
    ending = next((ending for ending in _UNITS if name.endswith(ending)), "")
    return name.removesuffix(ending).replace("_", " ").replace("/", ": ")


def unit(name: str) -> str:
    """The unit that a metric's name ends with; "": it has none, or says it itself."""
    return next((found for ending, found in _UNITS.items() if name.endswith(ending)), "")


def _main(names: list[str], kind: str) -> Iterator[Group]:
    rules = (
        ("Loss", _UNITS_OF_LOSS.get(kind, ""), lambda name: name in ("loss", "evaluation_loss")),
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
