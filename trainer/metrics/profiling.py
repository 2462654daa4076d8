"""A torch profiler trace of chosen steps of rank 0, and where their time went, in words.

profile/trace-steps-10-12.json.gz   for Perfetto (ui.perfetto.dev) or chrome://tracing
        costs-steps-10-12.txt       the ten largest costs
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from finecut.trainer.keeping import ProfileConfig

FOLDER = "profile"
_LARGEST = 10
# Forward passes of one trace, which has some 10 MB of each: a step of many would take minutes to write.
_MOST_PASSES = 24
# Words for what names of operations and kernels contain; the first that fits.
_WORDS = (
    (("flash", "attention", "sdpa", "attn"), "attention"),
    (("all_gather", "allgather"), "gathering parameters from other ranks"),
    (("reduce_scatter", "reducescatter"), "summing gradients over ranks"),
    (("all_reduce", "allreduce"), "sums over ranks"),
    (("gemm", "mm", "matmul", "linear", "nvjet", "cutlass"), "matrix product"),
    (("adam", "foreach"), "optimizer and clipping"),
    (("memcpy", "copy_", "memset", "aten::to", "_to_copy"), "copying and casting"),
    (("softmax", "logsumexp", "nll", "slope", "normalizer"), "loss over the vocabulary"),
    (("embedding", "index"), "looking up and scattering rows"),
    (("triton",), "fused norms, rotations and products"),
    (("norm",), "norms"),
    (("fsdp",), "FSDP2's own bookkeeping"),
)


class Profiler:
    """Traces the configured steps; does nothing in others, on other ranks, and in a run that resumes after them."""

    def __init__(
        self, config: ProfileConfig | None, folder: Path, is_main: bool, say: Callable[[str], None], model: nn.Module
    ) -> None:
        """`model`: whose forward passes are counted; a trace ends with as many as fit it."""
        self._model = model
        self._config = config if is_main else None
        self._folder = folder / FOLDER
        self._say = say
        self._profiler: Any = None
        self._first_step = 0
        self._num_passes = 0
        self._hook: RemovableHandle | None = None

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """A training step runs inside."""
        config = self._config
        if config is None or not config.first_step <= step < config.first_step + config.num_steps:
            yield
            return
        if self._profiler is None:
            self._first_step = step
            self._profiler = torch.profiler.profile(activities=_activities())
            self._profiler.start()
            self._hook = self._model.register_forward_pre_hook(self._count)
        try:
            yield
        except BaseException:
            self._stop()
            self._profiler = self._config = None
            raise
        if step == config.first_step + config.num_steps - 1:
            self.finish(step)

    def finish(self, last_step: int) -> None:
        """Ends a trace that is under way, the run's end included, and writes what it found."""
        if self._profiler is None:
            return
        self._stop()
        profiler, self._profiler, self._config = self._profiler, None, None
        name = f"steps-{self._first_step}-{last_step}"
        is_cut = self._num_passes > _MOST_PASSES
        lines = largest_costs(profiler.key_averages(), None if is_cut else last_step - self._first_step + 1)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(self._folder / f"trace-{name}.json.gz"))
            (self._folder / f"costs-{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        except (OSError, RuntimeError) as error:
            self._say(f"the profile cannot be written: {error}")
        part = f" (the first {_MOST_PASSES} forward passes)" if is_cut else ""
        self._say(f"profile of {name.replace('-', ' ')}{part} in {self._folder}; most of the time went into:")
        for line in lines:
            self._say(line)

    def _count(self, model: nn.Module, inputs: Any) -> None:
        """Before a forward pass: one that would be too many is not traced, and nothing after it."""
        self._num_passes += 1
        if self._num_passes > _MOST_PASSES:
            self._stop()

    def _stop(self) -> None:
        if self._hook is None:
            return
        self._hook.remove()
        self._hook = None
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profiler.stop()


def largest_costs(averages: Any, num_steps: int | None) -> list[str]:
    """The ten costs that took longest by themselves, of the GPU where there is one, else of the CPU; one line each.

    `num_steps`: whole ones that were traced; None: no whole number of them, and costs are of all that was.
    """
    on_gpu = any(event.self_device_time_total for event in averages)

    def microseconds(event: Any) -> float:
        return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)

    kinds = [event for event in averages if microseconds(event) > 0]
    if on_gpu:
        # Kernels only: the operations that start them are counted with their kernels' time, too.
        kinds = [event for event in kinds if event.device_type != torch.autograd.DeviceType.CPU]
    total = sum(map(microseconds, kinds)) or 1.0
    largest = sorted(kinds, key=microseconds, reverse=True)[:_LARGEST]
    device = "the GPU's" if on_gpu else "the CPU's"
    unit, count = ("in all", 1) if num_steps is None else ("a step", num_steps)
    return [
        f"{place}. {in_words(event.key)}: {microseconds(event) / total:.1%} of {device} time,"
        f" {microseconds(event) / 1e3 / count:,.2f} ms {unit} in {event.count / count:,.0f} calls"
        f" ({event.key[:80]})"
        for place, event in enumerate(largest, start=1)
    ]


def in_words(name: str) -> str:
    """What an operation or kernel is for."""
    lower = name.lower()
    return next((words for parts, words in _WORDS if any(part in lower for part in parts)), "other work")


def _activities() -> list[torch.profiler.ProfilerActivity]:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    return activities
