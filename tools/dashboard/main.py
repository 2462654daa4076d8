"""Runs in the browser: live pages and TensorBoard, on the loopback interface.

Usage: bazel run //tools:dashboard -- --storage_root=finecut-runs

Open the printed address; Ctrl-C ends it. It only reads, and answers to programs of this machine alone; from elsewhere
use a tunnel: ssh -L 8268:127.0.0.1:8268 HOST.
"""

import contextlib
import sys

from absl import app, flags

from finecut.launcher import runs
from finecut.tools.dashboard import server, tensorboard_server

_STORAGE_ROOT = flags.DEFINE_string(
    "storage_root", None, "Folder that holds the runs. Unset: finecut-runs where you stand."
)
_PORT = flags.DEFINE_integer(
    "dashboard_port", 8268, "Port of the pages; 0: any that is free.", lower_bound=0, upper_bound=65535
)
_TENSORBOARD = flags.DEFINE_bool("tensorboard", True, "Start TensorBoard too.")
_TENSORBOARD_PORT = flags.DEFINE_integer(
    "tensorboard_port", 0, "Port of TensorBoard; 0: any that is free.", lower_bound=0, upper_bound=65535
)


def main(arguments: list[str]) -> int:
    """Serves until Ctrl-C."""
    if len(arguments) > 1:
        raise app.UsageError(f"unknown argument {arguments[1]!r}; name the folder with --storage_root")
    root = runs.storage_root(_STORAGE_ROOT.value)
    if not root.is_dir():
        print(f"error: {root} is not a folder; name the one that holds the runs with --storage_root", file=sys.stderr)
        return 2
    tensorboard = tensorboard_server.start(root, _TENSORBOARD_PORT.value) if _TENSORBOARD.value else ""
    try:
        served = server.make_server(server.Pages(root, tensorboard), _PORT.value)
    except OSError as error:
        print(
            f"error: --dashboard_port: {_PORT.value} cannot be used ({error.strerror}); choose another", file=sys.stderr
        )
        return 2
    print(f"runs:        http://127.0.0.1:{served.server_port}/", flush=True)
    if tensorboard:
        print(f"TensorBoard: {tensorboard}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        served.serve_forever()
    return 0


if __name__ == "__main__":
    app.run(main)
