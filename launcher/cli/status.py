"""`status`: where a run stands, or, without a name, which runs there are. Starts nothing."""

from typing import Any

from rich.console import Console
from rich.table import Table

from finecut.launcher import report, runs
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run, storage_root
from finecut.proto.config import load_resolved


def main(request: Request, output: Output) -> int:
    """Reports one run (by name or --config), or lists those below the storage root."""
    if request.run is None and request.config is None:
        return _list(request, output)
    result = report.of_run(job_from_config_or_run(request))
    output.result(result.document(), result.show)
    return 0


def _list(request: Request, output: Output) -> int:
    root = storage_root(request)
    found = []
    for folder in runs.list_runs(root):
        job = load_resolved(folder.config)
        job.storage.root = str(folder.root.parent)
        found.append(report.of_run(job))
    rows: list[dict[str, Any]] = [{"name": run.name, "state": run.state, "folder": run.folder} for run in found]

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
