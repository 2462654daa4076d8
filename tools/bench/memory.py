"""Memory of a process and all that it started, sampled while it runs."""

import os
import threading
import time
from collections import defaultdict
from pathlib import Path

_PERIOD_SECONDS = 0.5


class TreeUsage:
    """Samples from `start` until `stop`.

    Attributes:
      peak_bytes: The largest sum over the tree of proportional set sizes: pages that processes share are counted once.
      peak_process_bytes: The largest set of one process.
      peak_own_bytes: The same without pages of mapped files, which the kernel takes back when memory runs short.
    """

    def __init__(self, pid: int):
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.peak_process_bytes = 0
        self.peak_own_bytes = 0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            sizes = [_proportional_set(pid) for pid in _tree(self._pid)]
            self.peak_bytes = max(self.peak_bytes, sum(size for size, _ in sizes))
            self.peak_process_bytes = max(self.peak_process_bytes, *(size for size, _ in sizes), 0)
            self.peak_own_bytes = max(self.peak_own_bytes, *(size - mapped for size, mapped in sizes), 0)
            time.sleep(_PERIOD_SECONDS)


def _tree(root: int) -> list[int]:
    """The process and all below it."""
    children: dict[int, list[int]] = defaultdict(list)
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                status = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            # Fields behind the name, which may hold spaces: state, parent ...
            children[int(status.rpartition(")")[2].split()[1])].append(int(name))
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children[found[-1]]
    return found


def _proportional_set(pid: int) -> tuple[int, int]:
    """Bytes, and how many of them are of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0, 0
    sizes = {line.split()[0]: int(line.split()[1]) << 10 for line in lines if line.startswith("Pss")}
    return sizes.get("Pss:", 0), sizes.get("Pss_File:", 0)
