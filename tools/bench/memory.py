"""Memory and processor time of a process and all that it started, sampled while it runs."""

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
      cpu_seconds: Of all processes, up to the last sample of each: what a busy machine changes least.
    """

    def __init__(self, pid: int):
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0
        self.peak_process_bytes = 0
        self._cpu_seconds: dict[int, float] = {}

    @property
    def cpu_seconds(self) -> float:
        return sum(self._cpu_seconds.values())

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.is_set():
            processes = _tree(self._pid)
            self._cpu_seconds |= processes
            sizes = [_proportional_set(pid) for pid in processes]
            self.peak_bytes = max(self.peak_bytes, sum(sizes))
            self.peak_process_bytes = max(self.peak_process_bytes, *sizes, 0)
            time.sleep(_PERIOD_SECONDS)


def _tree(root: int) -> dict[int, float]:
    """The process and all below it, each with the seconds of processor time that it has had."""
    children: dict[int, list[int]] = defaultdict(list)
    seconds: dict[int, float] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                status = Path("/proc", name, "stat").read_text()
            except OSError:
                continue
            # Fields behind the name, which may hold spaces: state, parent ... user and system time 12th and 13th.
            fields = status.rpartition(")")[2].split()
            children[int(fields[1])].append(int(name))
            seconds[int(name)] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    found, todo = [], [root]
    while todo:
        found.append(todo.pop())
        todo += children[found[-1]]
    return {pid: seconds[pid] for pid in found if pid in seconds}


def _proportional_set(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
