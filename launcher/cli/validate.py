"""`validate`: says whether a job would be accepted, with every problem if not. Starts nothing."""

from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request, job_from_config
from finecut.launcher.providers import registry
from finecut.proto.config import waves


def main(request: Request, output: Output) -> int:
    """Checks the job of --config; its problems arrive as ConfigError in the caller."""
    job = job_from_config(request)
    registry.plan(job)  # whether the machines that it names can do it
    order = " -> ".join(", ".join(wave) for wave in waves(job))
    output.result(
        {"name": job.name, "problems": []},
        lambda console: console.print(f"{request.config} is valid: {order}", markup=False),
    )
    return 0
