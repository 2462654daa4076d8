"""Whether a node holds what was paid for: GPUs and EFA interfaces, counted by the drivers' own tools."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator

_TIMEOUT_S = 60.0


def missing(gpus: int, efa_cards: int) -> Iterator[str]:
    """A sentence for each kind of device of which there are too few; nothing else is wrong with such a node."""
    found = count_gpus()
    if found < gpus:
        yield f"nvidia-smi lists {found} GPUs of {gpus}"
    if efa_cards:
        found = count_efa()
        if found < efa_cards:
            yield f"fi_info lists {found} EFA interfaces of {efa_cards}"


def count_gpus() -> int:
    """GPUs that the driver lists; 0 without a driver."""
    return sum(line.startswith("GPU ") for line in _lines("nvidia-smi", "-L"))


def count_efa() -> int:
    """EFA interfaces that libfabric sees, each once."""
    domains = {line.split()[-1] for line in _lines("fi_info", "-p", "efa") if line.strip().startswith("domain:")}
    return len({domain.removesuffix("-rdm").removesuffix("-dgrm") for domain in domains})


def kernel_log() -> list[str]:
    """The kernel's messages; empty where this process may not read them."""
    return _lines("dmesg", "--ctime")


def diagnose() -> str | None:
    """DCGM's medium check of the GPUs: what it complains of. None: it passed, or the machine image has no DCGM."""
    if shutil.which("dcgmi") is None:
        return None
    try:
        answer = subprocess.run(["dcgmi", "diag", "-r", "2"], capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return "dcgmi diag -r 2 did not end within 15 minutes"
    failed = [line.strip(" |") for line in answer.stdout.splitlines() if "Fail" in line]
    return f"dcgmi diag -r 2: {'; '.join(failed) or f'exit code {answer.returncode}'}" if answer.returncode else None


def _lines(*command: str) -> list[str]:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return answer.stdout.splitlines() if answer.returncode == 0 else []
