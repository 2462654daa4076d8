"""The optimizer's moments in host memory: the same weights after some steps, and what a step costs more."""

from __future__ import annotations

import dataclasses
import statistics

import torch
from torch import Tensor

from finecut.tools.gpu_bench.cases import Case
from finecut.tools.gpu_bench.training import Session, free
from finecut.trainer.models.sharding import gather, named_parameters
from finecut.trainer.parallel.process_group import Devices


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Weights after the steps, median seconds a step, and peak memory in GiB."""

    weights: dict[str, Tensor]
    seconds: float
    peak_gib: float


def train(case: Case, offload: bool, devices: Devices, num_steps: int = 6) -> Outcome:
    """Trains from the same weights on the same text with or without offload."""
    torch.manual_seed(0)
    torch.cuda.reset_peak_memory_stats()
    session = Session(case, "parallelism { offload_optimizer: true }" if offload else "", devices)
    seconds = [session.step(session.batches())[0] for _ in range(num_steps)]
    weights = {name: gather(parameter.detach()).cpu() for name, parameter in named_parameters(session.model)}
    peak = torch.cuda.max_memory_allocated() / 2**30
    del session
    free()
    return Outcome(weights, statistics.median(seconds[2:]), peak)


def difference(one: Outcome, other: Outcome) -> float:
    """Largest difference of any weight, relative to the largest weight of its parameter."""
    pairs = [(one.weights[name], other.weights[name]) for name in one.weights]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
