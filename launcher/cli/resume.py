"""`resume`: continues a run by its name, or by its job file."""

from finecut.launcher import driver
from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config_or_run
from finecut.launcher.cli.run import run_job
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder


def main(request: Request, output: Output) -> int:
    """Continues a run that was started before."""
    job = job_from_config_or_run(request)
    folder = RunFolder.of(job)
    if not folder.config.is_file():
        raise UserError(f"{folder.root} holds no run to resume; start it with: run --config={request.config}")
    return run_job(job, output, driver.REAL)
