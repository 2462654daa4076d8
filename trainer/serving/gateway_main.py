"""The process of an endpoint, until it gets SIGTERM. The deploy stage starts it.

python -m finecut.trainer.serving.gateway_main --name=chat --folder=FOLDER --host=127.0.0.1 --port=8000

It has a Ray of its own, private to it, whose Serve runs the replicas, and lives on when the job has ended. With
--cluster they are on the nodes of that Ray, with which it ends.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import app, flags
from aiohttp import web

from finecut.proto.config import UserError
from finecut.trainer.rl import local_cluster
from finecut.trainer.serving import authentication, inner_tls
from finecut.trainer.serving.gateway import Access, Gateway

_NAME = flags.DEFINE_string("name", None, "Name of the endpoint.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Where its status and logs go.", required=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.")
_MAX_REQUEST_BYTES = flags.DEFINE_integer("max_request_bytes", 4 << 20, "Longest request.")
_KEY_FILE = flags.DEFINE_string("api_key_file", "", "File with the key that clients send.")
_KEY_VARIABLE = flags.DEFINE_string("api_key_variable", "", "Environment variable with that key.")
_CERTIFICATE = flags.DEFINE_string("certificate", "", "Certificate to listen with, in PEM.")
_CERTIFICATE_KEY = flags.DEFINE_string("certificate_key", "", "Its private key, in PEM.")
_CLUSTER = flags.DEFINE_string("cluster", "", "Address of the Ray on whose nodes replicas are. Unset: one of its own.")
_CLUSTER_HOST = flags.DEFINE_string("cluster_host", "", "This machine's address in that Ray.")


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to end."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    folder = Path(_FOLDER.value)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        key = authentication.read_key(_KEY_FILE.value, _KEY_VARIABLE.value)
        tls = authentication.server_tls(_CERTIFICATE.value, _CERTIFICATE_KEY.value)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    nodes_tls = inner_tls.of_this_node() if _CLUSTER.value else None
    access = Access(key, secrets.token_hex(32), nodes_tls.client_context() if nodes_tls else None)
    with _job_cluster() if _CLUSTER.value else local_cluster.joined():
        from finecut.trainer.serving.serve_replicas import ServeReplicas  # imports Ray

        layer = ServeReplicas(_NAME.value, folder / "logs", access.replica_key)
        gateway = Gateway(_NAME.value, folder, layer, access, _MAX_REQUEST_BYTES.value, _CLUSTER.value)
        try:
            web.run_app(
                gateway.application(),
                host=_HOST.value,
                port=_PORT.value,
                ssl_context=tls,
                print=None,
                access_log=None,
                shutdown_timeout=60,
            )
        except OSError as error:
            print(f"port {_PORT.value} of {_HOST.value} cannot be listened on: {error.strerror}", file=sys.stderr)
            return 2
    return 0


@contextlib.contextmanager
def _job_cluster() -> Iterator[None]:
    """The Ray of a job, whose environment this process was started with."""
    import ray

    ray.init(
        address=_CLUSTER.value,
        namespace="finecut-serving",
        log_to_driver=False,
        logging_level="error",
        _node_ip_address=_CLUSTER_HOST.value,
    )
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    app.run(main)
