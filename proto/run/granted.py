"""GPUs that a stage has by now, told by whoever starts stages; its group takes more of them at a step's border."""

from pathlib import Path

from finecut.proto.run import files

_NAME = "gpus_granted"


def tell(stage: Path, num_gpus: int) -> None:
    """`stage`: its folder. 0: it was given no number of its own."""
    files.write_atomically(stage / _NAME, str(num_gpus))


def read(stage: Path) -> int:
    """0 where nothing was told."""
    try:
        return int((stage / _NAME).read_text())
    except OSError:
        return 0
