"""`status`: where a run stands, with --watch until it ends; without a name, which runs there are. Starts nothing."""

import threading
from typing import Any

from rich.console import Console
from rich.table import Table

from finecut.launcher import progress, report, runs
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run, storage_root
from finecut.launcher.views import standing, terminal
from finecut.launcher.views.run_view import RunReader
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder

_PERIOD_S = 1.0


def main(request: Request, output: Output) -> int:
    """Reports one run (by name or --config), or lists those below the storage root.

    Raises:
      UserError: No such run, or --watch with nothing to watch.
    """
    refuse_to_draw_json(request)
    if request.run is None and request.config is None:
        if request.watch:
            raise UserError("--watch needs a run; name one, for example: status NAME --watch")
        return _list(request, output)
    job = job_from_config_or_run(request)
    if request.watch:
        _watch(RunFolder.of(job), output.console)
    folder = RunFolder.of(job)
    if folder.config.is_file():
        view = RunReader(folder.root).read()
        output.result(standing.document(view), lambda console: standing.show(view, console))
    else:
        result = report.of_run(job)  # nothing of it has begun
        output.result(result.document(), result.show)
    return 0


def refuse_to_draw_json(request: Request) -> None:
    """Raises UserError for --watch with --format=json."""
    if request.watch and request.json:
        raise UserError("--watch draws for people; leave out --format=json, or ask again and again without --watch")


def _watch(folder: RunFolder, console: Console) -> None:
    """Returns when the run is no longer at work. Where nobody draws, new events are printed as lines."""
    reader = RunReader(folder.root)
    if console.is_terminal:
        terminal.watch(reader.read, console)
        return
    view = reader.read()
    follower = progress.Follower(folder, [stage.name for stage in view.stages], progress.PlainView(console))
    tick = threading.Event()
    while runs.launcher_pid(folder) is not None:
        tick.wait(_PERIOD_S)
        follower.poll()


def _list(request: Request, output: Output) -> int:
    root = storage_root(request)
    rows: list[dict[str, Any]] = [
        {"name": folder.root.name, "state": report.state_of(folder), "folder": str(folder.root)}
        for folder in runs.list_runs(root)
    ]

    def show(console: Console) -> None:
        if not rows:
            console.print(f"no runs in {root}", markup=False)
            return
        table = Table("run", "state", "folder", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*row.values())
        console.print(table)

    output.result({"storage_root": str(root), "runs": rows}, show)
    return 0
