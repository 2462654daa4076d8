"""Peak memory."""

from pathlib import Path

import torch

from finecut.trainer.metrics.memory import memory_limit_gib, peak_memory_gib


def test_peak_on_a_cpu_grows_by_what_was_held():
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(64 * 2**20)  # 0.25 GiB of FP32, every page written
    assert before + 0.2 < peak_memory_gib(torch.device("cpu")) < before + 0.5
    del held


def test_limit_is_the_hosts_memory():
    (total,) = (
        line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")
    )
    assert abs(memory_limit_gib(torch.device("cpu")) - int(total) / 2**20) < 0.01
