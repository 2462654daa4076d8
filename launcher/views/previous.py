"""The run before: the newest other run of the same storage root that started earlier, and what is new since."""

import itertools
from dataclasses import dataclass

from finecut.launcher import journal, runs
from finecut.launcher.views.differences import Difference, differences
from finecut.launcher.views.run_view import RunView
from finecut.proto.config import UserError, load_resolved
from finecut.proto.run import RunFolder, events


@dataclass(frozen=True)
class Previous:
    """The run before, and the config's differences from it to this one."""

    name: str
    differences: list[Difference]


def find(view: RunView) -> Previous | None:
    """None where this run has not started, or none was before it that can be read."""
    this = RunFolder.of(view.job)
    if view.started is None:
        return None
    others = [folder for folder in runs.list_runs(this.root.parent) if folder.root.name != this.root.name]
    earlier = [(at, folder) for folder in others if (at := _started(folder)) is not None and at < view.started]
    for _, folder in sorted(earlier, key=lambda each: each[0], reverse=True):
        try:
            return Previous(folder.root.name, differences(load_resolved(folder.config), view.job))
        except UserError:  # torn, or of a version that this one cannot read
            continue
    return None


def _started(folder: RunFolder) -> float | None:
    """When a run's first stage started; None: none did."""
    try:
        with journal.path(folder).open("rb") as file:
            lines = list(itertools.islice(file, 4))  # the first whole one counts
    except OSError:
        return None
    return next((event.at.ToNanoseconds() / 1e9 for event in events.parse(lines)), None)
