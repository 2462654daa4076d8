"""`run` and the second half of `resume`: prints what was resolved, progress, and then where everything is."""

import logging

from finecut.launcher import driver, planner, report
from finecut.launcher.cli.output import Output, terminal
from finecut.launcher.cli.plan import show
from finecut.launcher.cli.request import Request, job_from_config
from finecut.launcher.interrupts import Interrupted
from finecut.launcher.workflow import StageError
from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder


def main(request: Request, output: Output) -> int:
    """Runs the job of --config, or continues it where it was started before."""
    return run_job(job_from_config(request), output, driver.REAL)


def run_job(job: job_pb2.JobConfig, output: Output, machinery: driver.Machinery) -> int:
    """Drives a resolved job to its end.

    Returns:
      The exit code: 0 done, 1 something broke, 2 a stage refused its input.
    """
    # In JSON, standard output holds one document, so progress goes to standard error.
    console = terminal(stderr=True) if output.as_json else output.console
    plan = planner.plan(job)
    console.print(f"run {job.name} in {plan.root}", markup=False)
    show(plan, console)
    log = driver.log_path(RunFolder.of(job))
    hint = f"continue with: {driver.resume_command(job)}"
    try:
        worked = driver.drive(job, machinery, console)
    except Interrupted as signal:
        output.failed(f"interrupted by {signal}; finished stages and checkpoints are kept", hint=hint)
        raise
    except StageError as error:
        if error.invalid_input:
            output.invalid(UserError(str(error)), hint=hint)
            return 2
        output.failed(str(error), log=str(log), hint=hint)
        return 1
    except UserError:
        raise  # nothing was started
    except Exception as error:
        logging.getLogger("finecut.launcher").error("the launcher failed", exc_info=error)
        output.failed(f"the launcher failed: {type(error).__name__}: {error}", log=str(log), hint=hint)
        return 1
    if not worked:
        console.print("everything was finished before; nothing was run again")
    result = report.of_run(job)
    output.result(result.document(), result.show)
    return 0
