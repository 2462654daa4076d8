"""The locks are what their inputs ask for, and nothing more."""

import re
from pathlib import Path

import pytest

from finecut.third_party.python import update_locks

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("accelerator", update_locks.ACCELERATORS)
class TestLock:
    def test_is_up_to_date_with_its_inputs(self, accelerator: str) -> None:
        first = self.lines(accelerator)[0]
        assert first == update_locks.HEADER + update_locks.digest(FOLDER, accelerator), (
            f"requirements_{accelerator}.lock is out of date; run bazel run //third_party/python:update_locks"
        )

    def test_pins_and_hashes_every_package(self, accelerator: str) -> None:
        text = "\n".join(self.lines(accelerator))
        pins = re.findall(r"^(\S+?)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
        names = [line for line in text.splitlines() if line and line[0] not in " #"]
        assert len(pins) == len(names) > 100

    def test_holds_every_direct_requirement(self, accelerator: str) -> None:
        asked = set()
        for path in update_locks.inputs(FOLDER, accelerator)[:2]:
            asked |= {re.split(r"[\[=<>~!;# ]", line)[0] for line in path.read_text().splitlines()}
        asked -= {"", "-r"}
        locked = {re.split(r"[\[=]", line)[0] for line in self.lines(accelerator)}
        assert asked <= locked

    def lines(self, accelerator: str) -> list[str]:
        return (FOLDER / f"requirements_{accelerator}.lock").read_text().splitlines()


def test_cpu_lock_holds_no_cuda_package() -> None:
    names = [line for line in (FOLDER / "requirements_cpu.lock").read_text().splitlines() if line[:1].isalpha()]
    assert not [name for name in names if re.match(r"nvidia-|cuda-|triton==", name)]


def test_cuda_lock_holds_the_cuda_build_of_torch() -> None:
    names = [line for line in (FOLDER / "requirements_cuda.lock").read_text().splitlines() if line[:1].isalpha()]
    assert [name for name in names if re.match(r"torch==[\d.]+ ", name)]
    assert [name for name in names if name.startswith("nvidia-")]
