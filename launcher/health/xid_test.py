"""Xid errors as the kernel writes them."""

import pytest

from finecut.launcher.health import xid
from finecut.launcher.health.xid import Remedy, Xid

LINE = "[Sat Nov 21 10:00:00 2026] NVRM: Xid (PCI:0000:10:1c): {}, pid=4242, name=python, Ch 00000010"


@pytest.mark.parametrize(
    ("number", "remedy", "condemns"),
    [
        (54, Remedy.REPLACE, True),
        (79, Remedy.REBOOT, True),
        (151, Remedy.REBOOT, True),
        (48, Remedy.RESET, True),
        (119, Remedy.RESET, True),
        (74, Remedy.NVLINK, True),
        (149, Remedy.NVLINK, True),
        (13, Remedy.APPLICATION, False),
        (94, Remedy.APPLICATION, False),
        (9999, Remedy.UNKNOWN, False),
    ],
)
def test_number_tells_what_to_do(number: int, remedy: Remedy, condemns: bool) -> None:
    (found,) = xid.find([LINE.format(number)])
    assert (found.device, found.number, found.remedy, found.condemns_node) == (
        "PCI:0000:10:1c",
        number,
        remedy,
        condemns,
    )


def test_other_lines_are_no_errors() -> None:
    assert xid.find(["NVRM: loading NVIDIA UNIX", "Xid 79", "", LINE.format(31)]) == [Xid("PCI:0000:10:1c", 31)]


def test_every_number_has_one_remedy() -> None:
    numbers = [number for group in xid._NUMBERS.values() for number in group]
    assert len(numbers) == len(set(numbers))
