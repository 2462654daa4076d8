"""NVIDIA's Xid errors in the kernel's log, and what each asks for (NVIDIA's Xid catalogue)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Remedy(Enum):
    """From bad to worse. APPLICATION: the program's fault. NVLINK and above: the node must not go on."""

    APPLICATION = "the program's fault"
    UNKNOWN = "unknown"
    NVLINK = "NVLink error"
    RESET = "the GPU needs a reset"
    REBOOT = "the machine needs a reboot"
    REPLACE = "the GPU needs to be replaced"


_NUMBERS = {
    Remedy.REPLACE: (54,),
    Remedy.REBOOT: (79, 151, 168),
    Remedy.RESET: (48, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158),
    Remedy.NVLINK: (74, *range(144, 151)),
    Remedy.APPLICATION: (13, 31, 43, 63, 92, 94),
}
_REMEDIES = {number: remedy for remedy, numbers in _NUMBERS.items() for number in numbers}
_ORDER = list(Remedy)
_LINE = re.compile(r"NVRM: Xid \(([^)]*)\): (\d+)")


@dataclass(frozen=True)
class Xid:
    """One error. `device`: as the kernel names it, such as "PCI:0000:10:1c"."""

    device: str
    number: int

    @property
    def remedy(self) -> Remedy:
        return _REMEDIES.get(self.number, Remedy.UNKNOWN)

    @property
    def condemns_node(self) -> bool:
        """Whether the node must be replaced. On rented machines a reset or a reboot costs more than another node."""
        return _ORDER.index(self.remedy) >= _ORDER.index(Remedy.NVLINK)

    def __str__(self) -> str:
        return f"Xid {self.number} on {self.device}: {self.remedy.value}"


def find(lines: Iterable[str]) -> list[Xid]:
    """Every Xid in lines of the kernel's log."""
    return [Xid(match[1], int(match[2])) for line in lines if (match := _LINE.search(line))]
