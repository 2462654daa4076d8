"""`submit` without a service: says what to do instead."""

from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request
from finecut.proto.config import UserError


def main(request: Request, output: Output) -> int:
    """Refuses."""
    raise UserError("--server is not set; name the service that shall run the job, or use run to run it here")
