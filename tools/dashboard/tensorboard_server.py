"""TensorBoard in this process, on the loopback interface."""

import logging
from pathlib import Path

from tensorboard import program

_RELOAD_S = 5


def start(folder: Path, port: int) -> str:
    """Starts TensorBoard on everything below `folder` and returns its address; "" and a warning where it cannot start.

    Port 0: any that is free.
    """
    board = program.TensorBoard()
    arguments = ["", f"--logdir={folder}", "--host=127.0.0.1", f"--port={port}", f"--reload_interval={_RELOAD_S}"]
    try:
        board.configure(argv=arguments)
        return str(board.launch())
    except (program.TensorBoardServerException, OSError, ValueError) as error:
        logging.getLogger("finecut.dashboard").warning("TensorBoard does not start: %s", error)
        return ""
