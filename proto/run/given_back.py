"""GPUs that a stage at work does without for now, told by its rank 0 to whoever starts the stages that wait."""

from pathlib import Path

from finecut.proto.run import files

_NAME = "gpus_given_back"


def tell(stage: Path, num_gpus: int) -> None:
    """`stage`: its folder. What was told before is forgotten: the stage has the rest of its share, or waits for it."""
    files.write_atomically(stage / _NAME, str(num_gpus))


def read(stage: Path) -> int:
    """0 where nothing was told."""
    try:
        return int((stage / _NAME).read_text())
    except OSError:
        return 0


def clear(stage: Path) -> None:
    """What an earlier start has told."""
    (stage / _NAME).unlink(missing_ok=True)
