"""How much memory there is."""

from pathlib import Path

import torch

from finecut.trainer.metrics.memory_limit import memory_limit_gib


def test_limit_is_the_hosts_memory():
    lines = Path("/proc/meminfo").read_text().splitlines()
    (total,) = (line.split()[1] for line in lines if line.startswith("MemTotal:"))
    assert abs(memory_limit_gib(torch.device("cpu")) - int(total) / 2**20) < 0.01
