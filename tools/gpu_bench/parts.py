"""Checks and times the parts of a step: attention, norms and products, cross entropy, the optimizer, checkpoints."""

from __future__ import annotations

import dataclasses

import torch

from finecut.proto.config import UserError
from finecut.tools.gpu_bench import attention, cross_entropy, offload, pointwise, saving, step
from finecut.tools.gpu_bench.cases import CASES
from finecut.trainer.ops import kernels
from finecut.trainer.ops.kernels import Kernels
from finecut.trainer.parallel import process_group

# A single rounding of a result is 2^-9 = 0.002 (BF16) or 2^-12 (FP16); gradients pass through several.
_LIMITS = {torch.bfloat16: 1.5e-2, torch.float16: 3e-3}
_STEP_LIMITS = {"BF16": 3e-2, "FP16": 5e-3}
# A token whose experts are nearly equal in rank goes to another one after rounding: seen 0.029 and 0.010.
_MIXTURE_LIMITS = {"BF16": 6e-2, "FP16": 2e-2}
_KINDS = (
    (torch.bfloat16, 128, None, None),
    (torch.bfloat16, 128, 100, None),
    (torch.bfloat16, 128, 100, 20.0),
    (torch.float16, 64, None, None),
    (torch.bfloat16, 256, None, 20.0),
)
_LENGTHS = [300, 1, 129, 64, 530, 2, -100, 1174 - 152]


def attention_part() -> bool:
    """Prints; False when an error is beyond its limit. Each kind is compiled first, which takes seconds."""
    good = True
    for choice in (Kernels.AUTO, Kernels.TORCH):
        for dtype, size, window, soft_cap in _KINDS:
            found = attention.errors(choice, _LENGTHS, size, dtype, window, soft_cap)
            is_good = max(found) < _LIMITS[dtype]
            good &= is_good
            numbers = " ".join(f"{error:.1e}" for error in found)
            kind = f"{dtype}, heads of {size}, window {window}, cap {soft_cap}"
            print(f"attention {choice.name:5} {kind}: {numbers}{'' if is_good else '  BEYOND ITS LIMIT'}", flush=True)
        for length in (16_384, 2_048):
            forward, both = attention.speed(choice, length)
            print(f"attention {choice.name:5} documents of {length:6,}: {forward:.0f} / {both:.0f} TFLOP/s", flush=True)
    return good


def pointwise_part() -> bool:
    """Prints; False when an error is beyond its limit."""
    good = True
    for choice, compiled in (
        (Kernels.TORCH, False),
        (Kernels.TORCH, True),
        (Kernels.TRITON, False),
        (Kernels.APEX, False),
    ):
        try:
            kernels.use(choice, torch.device("cuda"))
        except UserError as refusal:
            print(refusal)
            continue
        title = "compiled" if compiled else choice.name
        for name, (error, forward, both) in pointwise.measure(choice, compiled).items():
            is_good = error < _LIMITS[torch.bfloat16]
            good &= is_good
            verdict = "" if is_good else "  BEYOND ITS LIMIT"
            print(f"{title:9} {name:18} {forward:7.3f} / {both:7.3f} ms, error {error:.1e}{verdict}", flush=True)
        if not compiled:
            rate, difference = pointwise.adamw(choice)
            good &= difference < 1e-5
            print(f"{title:9} AdamW {rate:,.0f} GB/s, differs from torch by {difference:.1e}", flush=True)
    return good


def cross_entropy_part() -> bool:
    """Prints; False when an error is beyond its limit."""
    good = True
    for dtype, soft_cap, chunk in (
        (torch.bfloat16, None, None),
        (torch.bfloat16, 30.0, 48),
        (torch.float16, None, 300),
    ):
        found = cross_entropy.errors(dtype, soft_cap, chunk)
        is_good = max(found.values()) < _LIMITS[dtype]
        good &= is_good
        numbers = ", ".join(f"{name} {error:.1e}" for name, error in found.items())
        print(f"cross entropy {dtype} cap {soft_cap}: {numbers}{'' if is_good else '  BEYOND ITS LIMIT'}", flush=True)
    products = cross_entropy.products_ms()
    print(f"cross entropy: its three products {products:.1f} ms")
    for size in (512, 1_024, 2_048, 4_096, None):
        found = cross_entropy.measure(size)
        ratio = found["ms"] / products
        print(f"cross entropy, chunks of {size}: {found['ms']:.1f} ms ({ratio:.2f}), {found['GB']:.2f} GB", flush=True)
    return good


def step_part() -> bool:
    """Prints; False when a gradient is beyond its limit."""
    good = True
    with process_group.connect() as devices:
        for case in step.CASES:
            want_loss, want = step.gradients(case, "precision: FP32 compile: false kernels: TORCH", 1.0, devices)
            for name, options in step.CHOICES.items():
                for precision, scale in (("BF16", 1.0), ("FP16", 2.0**16)):
                    try:
                        loss, got = step.gradients(case, f"{options} precision: {precision}", scale, devices)
                    except UserError as refusal:
                        print(f"step {case.name} {name}: {refusal}")
                        break
                    found = step.error(got, want)
                    limits = _MIXTURE_LIMITS if case.shape.experts else _STEP_LIMITS
                    is_good = found < limits[precision] and abs(loss - want_loss) < 2e-3 * want_loss
                    good &= is_good
                    verdict = "" if is_good else "  BEYOND ITS LIMIT"
                    print(
                        f"step {case.name} {name} {precision}: loss {loss:.5f} ({want_loss:.5f}), gradient {found:.1e}"
                        f"{verdict}",
                        flush=True,
                    )
    return good


def offload_part() -> bool:
    """Prints; False when weights differ."""
    case = next(case for case in CASES if case.name.startswith("1.7B"))
    with process_group.connect() as devices:
        small = dataclasses.replace(step.CASES[0], training="compile: false")
        found = offload.difference(*(offload.train(small, choice, devices) for choice in (False, True)))
        plain, offloaded = (offload.train(case, choice, devices) for choice in (False, True))
    is_good = found < 1e-6
    print(
        f"offloaded optimizer: weights differ by {found:.1e}{'' if is_good else '  BEYOND ITS LIMIT'}; {case.name}: "
        f"{plain.seconds:.3f} s, {plain.peak_gib:.1f} GiB; offloaded {offloaded.seconds:.3f} s, "
        f"{offloaded.peak_gib:.1f} GiB",
        flush=True,
    )
    return is_good


def saving_part() -> bool:
    """Prints."""
    case = next(case for case in CASES if case.name.startswith("1.7B"))
    with process_group.connect() as devices:
        cost = saving.measure(case, devices)
    shares = [100 * extra / (saving.STEPS_A_SAVE * cost.step) for extra in cost.extra]
    print(
        f"saving {case.name}, {cost.gigabytes:.1f} GB: a step takes {cost.step:.3f} s; stalls "
        f"{' '.join(f'{seconds:.2f}' for seconds in cost.stall)} s; whole cost "
        f"{' '.join(f'{seconds:.2f}' for seconds in cost.extra)} s, of {saving.STEPS_A_SAVE} steps "
        f"{' '.join(f'{share:.1f}%' for share in shares)}; written after "
        f"{' '.join(f'{seconds:.1f}' for seconds in cost.written)} s; loaded in {cost.load:.1f} s; "
        f"the disk writes {cost.disk_write:.2f} GB/s",
        flush=True,
    )
    return True


PARTS = {
    "attention": attention_part,
    "pointwise": pointwise_part,
    "cross_entropy": cross_entropy_part,
    "step": step_part,
    "offload": offload_part,
    "saving": saving_part,
}
