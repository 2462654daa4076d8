"""Counts, from tools that answer as the real ones do."""

from pathlib import Path

import pytest

from finecut.launcher.health import devices

GPUS = 'for n in 0 1 2 3; do echo "GPU $n: NVIDIA H100 80GB HBM3 (UUID: GPU-$n)"; done'
EFA = """
for card in 0 1; do for kind in rdm dgrm; do
printf 'provider: efa\\n    fabric: efa\\n    domain: rdmap%d-%s\\n    version: 122.0\\n' $card $kind
done; done
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


def write(folder: Path, name: str, body: str) -> None:
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(0o755)


def test_whole_node_has_nothing_missing(tools: Path) -> None:
    write(tools, "nvidia-smi", GPUS)
    write(tools, "fi_info", EFA)
    assert list(devices.missing(gpus=4, efa_cards=2)) == []


def test_too_few_devices_are_counted(tools: Path) -> None:
    write(tools, "nvidia-smi", GPUS)
    write(tools, "fi_info", EFA)
    assert list(devices.missing(gpus=8, efa_cards=32)) == [
        "nvidia-smi lists 4 GPUs of 8",
        "fi_info lists 2 EFA interfaces of 32",
    ]


def test_node_without_driver_has_no_gpus(tools: Path) -> None:
    write(tools, "nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert list(devices.missing(gpus=1, efa_cards=0)) == ["nvidia-smi lists 0 GPUs of 1"]


def test_diagnosis_names_what_failed(tools: Path) -> None:
    assert devices.diagnose() is None, "without DCGM nothing is claimed"
    write(tools, "dcgmi", "echo '| GPU Memory | Fail - GPU 3 |'; exit 226")
    assert devices.diagnose() == "dcgmi diag -r 2: GPU Memory | Fail - GPU 3"
    write(tools, "dcgmi", "echo '| GPU Memory | Pass |'")
    assert devices.diagnose() is None
