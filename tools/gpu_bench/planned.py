"""The planner against the measurements of docs/performance.md ("Training on GPUs"): the table of docs/planner.md.

bazel run //tools/gpu_bench:planned
"""

from __future__ import annotations

import dataclasses

import numpy as np

from finecut.tools.gpu_bench.cases import CASES, Case
from finecut.tools.gpu_bench.documents import row_lengths
from finecut.trainer.planning import gpus, memory, speed
from finecut.trainer.planning.workload import Layout, Workload

_ROWS = 200  # blocks of random documents that stand for a case's


@dataclasses.dataclass(frozen=True)
class Measured:
    """A line of that table: tokens a second and GPU, and the allocator's peak."""

    case: str
    gpu: str
    tokens_per_second: float
    peak_gib: float


MEASURED = (
    Measured("0.6B full, 16k, one document", "H100", 48_504, 30.9),
    Measured("0.6B full, 16k, one document", "H200", 52_241, 30.9),
    Measured("0.6B full, 8k log-normal", "H100", 96_079, 30.9),
    Measured("0.6B full, 8k log-normal", "H200", 102_085, 30.9),
    Measured("1.7B full, 8k log-normal", "H100", 46_771, 61.5),
    Measured("1.7B full, 8k log-normal", "H200", 48_446, 63.7),
    Measured("8B LoRA, 4k, one document", "H100", 14_939, 51.0),
    Measured("8B LoRA, 4k, one document", "H200", 15_558, 53.3),
    Measured("8B full, 8k, FSDP 2", "H200", 9_439, 83.6),
    Measured("8B full, 8k, FSDP 2, 4 a step", "H200", 9_769, 102.5),
    Measured("8B full, 8k, TP 2", "H200", 8_026, 68.8),
)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What was planned for a measured case. Errors are planned over measured, less 1."""

    measured: Measured
    tokens_per_second: float
    peak_gib: float

    @property
    def memory_error(self) -> float:
        """Of the peak."""
        return self.peak_gib / self.measured.peak_gib - 1

    @property
    def time_error(self) -> float:
        """Of the step time."""
        return self.measured.tokens_per_second / self.tokens_per_second - 1


def compare(measured: Measured) -> Comparison:
    """Plans the case on its GPUs, compiled and in BF16 as it was measured."""
    case = next(case for case in CASES if case.name == measured.case)
    work, layout = _workload(case, measured.gpu)
    planned = speed.plan(work, layout)
    return Comparison(measured, planned.tokens_per_second / case.num_gpus, memory.plan(work, layout).allocated / 2**30)


def _workload(case: Case, gpu: str) -> tuple[Workload, Layout]:
    device = gpus.by_name(gpu)
    assert device is not None, gpu
    tensor_size = 2 if "tensor_parallel_size: 2" in case.training else 1
    layout = Layout(case.num_gpus // tensor_size, tensor_size=tensor_size, micro_blocks=case.micro_blocks)
    random = np.random.default_rng(0)
    work = Workload(
        config=case.shape,
        lora=case.lora,
        block_size=case.block,
        global_blocks=case.micro_blocks * case.num_micro_batches * layout.data_size,
        device=device,
        compiled=True,
        document_lengths=[length for _ in range(_ROWS) for length in row_lengths(case, random)],
    )
    return work, layout


def table() -> str:
    """All of them, as Markdown."""
    lines = [
        "| case | GPU | peak GiB planned | measured | error | tokens/s a GPU planned | measured | error of step time |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for found in map(compare, MEASURED):
        measured = found.measured
        lines.append(
            f"| {measured.case} | {measured.gpu} | {found.peak_gib:.1f} | {measured.peak_gib:.1f} |"
            f" {found.memory_error:+.1%} | {found.tokens_per_second:,.0f} | {measured.tokens_per_second:,.0f} |"
            f" {found.time_error:+.1%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
