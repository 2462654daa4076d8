"""The process of an endpoint. The deploy stage starts it; it lives on when the job has ended, until it gets SIGTERM.

python -m finecut.trainer.serving.gateway_main --name=chat --folder=FOLDER --host=127.0.0.1 --port=8000
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags
from aiohttp import web

from finecut.trainer.serving.gateway import Gateway

_NAME = flags.DEFINE_string("name", None, "Name of the endpoint.", required=True)
_FOLDER = flags.DEFINE_string("folder", None, "Where its status and logs go.", required=True)
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
_PORT = flags.DEFINE_integer("port", 8000, "Port to listen on.")
_MAX_REQUEST_BYTES = flags.DEFINE_integer("max_request_bytes", 4 << 20, "Longest request.")


def gpus() -> list[int]:
    """Numbers of this host's GPUs, or of those that CUDA_VISIBLE_DEVICES leaves."""
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return [int(number) for number in visible.split(",")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return list(range(sum(line.startswith("GPU ") for line in listed.splitlines())))


def main(argv: Sequence[str]) -> int:
    """Serves until it is told to end."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    folder = Path(_FOLDER.value)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    gateway = Gateway(_NAME.value, folder, gpus(), _MAX_REQUEST_BYTES.value)
    try:
        web.run_app(
            gateway.application(),
            host=_HOST.value,
            port=_PORT.value,
            print=None,
            access_log=None,
            shutdown_timeout=60,
        )
    except OSError as error:
        print(f"port {_PORT.value} of {_HOST.value} cannot be listened on: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    app.run(main)
