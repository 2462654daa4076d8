"""`serve`: the launcher as a service, until SIGTERM or Ctrl-C."""

from finecut.launcher.cli.output import Output
from finecut.launcher.cli.request import Request
from finecut.launcher.service import logs, server, settings
from finecut.launcher.store.database import StoreUnavailableError
from finecut.proto import service_config_pb2
from finecut.proto.config import UserError

_DEFAULT_FOLDER = "finecut-service"


def main(request: Request, output: Output) -> int:
    """Serves; what goes wrong before the service answers is a sentence, later things are in its log."""
    config = _config(request, output)
    logs.configure()

    def ready(found: server.Endpoints) -> None:
        document = {"address": found.grpc, "metrics_port": found.metrics_port, "folder": config.folder}
        output.result(
            document, lambda console: console.print(f"serving at {found.grpc}, files in {config.folder}", markup=False)
        )

    try:
        server.serve(config, ready)
    except StoreUnavailableError as error:
        output.failed(f"store: {error}", hint="start the database, or mend `store` in the service's file")
        return 1
    return 0


def _config(request: Request, output: Output) -> service_config_pb2.ServiceConfig:
    if request.run or request.config or request.overrides:
        raise UserError("serve takes no job; jobs are submitted to it. Name its own file with --service_config")
    if request.service_config and request.insecure_loopback:
        raise UserError("--service_config and --insecure_loopback are both set; the file can say single_user itself")
    if request.service_config:
        return settings.load(request.service_config)
    if not request.insecure_loopback:
        raise UserError("--service_config is not set; name the service's file, or try it out with --insecure_loopback")
    config = settings.for_one_user(request.storage_root or _DEFAULT_FOLDER)
    output.note(f"without TLS: every user of this machine can act as {config.single_user} at {config.listen}")
    return config
