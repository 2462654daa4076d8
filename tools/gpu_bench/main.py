"""Measures training on this host's GPU and prints one table; every number comes from the trainer's own code.

    bazel run //tools/gpu_bench                        # all cases
    bazel run //tools/gpu_bench -- --only=1.7B --set='compile: false'
    python -m finecut.tools.gpu_bench.main --part=attention --only=none   # from the bundle: no case, one part
    torchrun --nproc-per-node=2 -m finecut.tools.gpu_bench.main           # the cases for two GPUs

Exit codes: 0 measured, 1 a check or a case failed.
"""

from __future__ import annotations

import os
import sys
import traceback

import torch
from absl import app, flags

from finecut.tools.gpu_bench import training
from finecut.tools.gpu_bench.cases import CASES, Case
from finecut.tools.gpu_bench.parts import PARTS
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.planning import gpus

_ONLY = flags.DEFINE_list("only", [], "Cases whose name contains one of these; empty: all.")
_STEPS = flags.DEFINE_integer("steps", 5, "Timed steps of a case, after three to warm up.", lower_bound=1)
_SET = flags.DEFINE_string("set", "", "Fields of TrainingConfig in text format, over those of each case.")
_PARTS = flags.DEFINE_multi_enum("part", [], list(PARTS), "First check and time a part of a step; may be repeated.")
_PROFILES = flags.DEFINE_string("profiles", "", "Folder for a table of the slowest kernels of each case.")


def main(argv: list[str]) -> int:
    del argv
    if not torch.cuda.is_available():
        print("error: no GPU is visible; this tool measures GPUs only", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if not all([PARTS[part]() for part in _PARTS.value]):
        print("error: a result is beyond its limit; see above", file=sys.stderr)
        return 1
    lines = [f"{'case':32} {'tok/s':>9} {'TFLOP/s':>8} {'MFU':>6} {'peak GiB':>9} {'spread':>7} {'first s':>8}  goal"]
    failed = False
    with process_group.connect() as devices:
        cases = [case for case in CASES if case.num_gpus == devices.world_size]
        for case in cases:
            if _ONLY.value and not any(part in case.name for part in _ONLY.value):
                continue
            try:
                lines.append(_line(case, devices))
            except Exception as error:  # the others are still worth measuring
                traceback.print_exc()
                lines.append(f"{case.name:32} failed: {str(error).splitlines()[0][:90]}")
                failed = True
            print(lines[-1], flush=True)
        if devices.is_main:
            print("\n" + "\n".join(lines))
    return int(failed)


def _line(case: Case, devices: process_group.Devices) -> str:
    profile = os.path.join(_PROFILES.value, case.name.replace(" ", "-").replace(",", "") + ".txt")
    result = training.run(case, _SET.value, _STEPS.value, devices, profile if _PROFILES.value else "")
    print(case.name, "seconds a step:", " ".join(f"{seconds:.3f}" for seconds in result.step_seconds), flush=True)
    gpu = gpus.of_driver_name(torch.cuda.get_device_name())
    peak = gpu.peak_16bit if gpu else None
    share = f"{100 * result.flops_per_second / peak:5.1f}%" if peak else "     -"
    return (
        f"{case.name:32} {result.tokens_per_second:9,.0f} {result.flops_per_second / 1e12:8.1f} {share}"
        f" {result.peak_gib:9.1f} {100 * result.spread:6.1f}% {result.first_step_seconds:8.1f}  {case.goal}"
    )


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))
