"""Peak memory."""

import torch

from finecut.trainer.metrics.memory import peak_memory_gib


def test_peak_on_a_cpu_grows_by_what_was_held():
    before = peak_memory_gib(torch.device("cpu"))
    held = torch.ones(64 * 2**20)  # 0.25 GiB of FP32, every page written
    assert before + 0.2 < peak_memory_gib(torch.device("cpu")) < before + 0.5
    del held
