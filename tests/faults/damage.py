"""Files that a disk or a crash has spoiled."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path


def truncate(path: Path, length: int) -> None:
    """Keeps the first `length` bytes."""
    with path.open("r+b") as file:
        file.truncate(length)


def flip(path: Path, bit: int) -> None:
    """Turns one bit of the file over, counted from its beginning."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def each_damage(folder: Path, count: int, seed: int = 0) -> Iterator[str]:
    """Spoils one file below `folder` at a time, at `count` places drawn from all bytes and all files; mends it after.

    Every file is chosen as often as every other one, so that small ones are not missed. Yields what was done.
    """
    draw = random.Random(seed)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for number in range(count):
        path = paths[number % len(paths)]
        whole = path.read_bytes()
        place = draw.randrange(len(whole))
        if draw.random() < 0.5:
            truncate(path, place)
            yield f"{path.name} is cut to {place} bytes"
        else:
            flip(path, bit := place * 8 + draw.randrange(8))
            yield f"bit {bit} of {path.name} is turned over"
        path.write_bytes(whole)
