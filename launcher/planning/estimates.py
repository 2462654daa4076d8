"""What one training stage takes: parameters, memory, time, cost; whether it fits, and what would.

stage of the job -> Workload and Layout (workloads.py) -> memory.plan, speed.plan -> Estimate
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from finecut.launcher.planning import workloads
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.planning.workloads import Before, Rollouts, Trained
from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.trainer.planning import memory, proposals, shapes, speed
from finecut.trainer.planning.memory import Memory
from finecut.trainer.planning.shapes import Parameters
from finecut.trainer.planning.workload import Layout, Recompute, Workload

_GIB = 2**30
# What an engine that sleeps keeps of a GPU: its process's context, and what vLLM does not give back.
_ASLEEP_BYTES = 2 * _GIB
# Beside its weights, an engine on CPUs has a process with torch and vLLM, and EngineConfig.cpu_cache_gib.
_CPU_ENGINE_BYTES = 3 * _GIB
# How far a plan may be above what a run takes: of the cases that were measured (docs/planner.md), and of others.
_MEASURED_ERROR, _OTHER_ERROR = 0.08, 0.25


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One stage on the plan's hardware.

    Attributes:
      memory: Of one rank; with engines, at the moment that takes more.
      needed: Bytes of a device that this takes at most.
      steps: None: the length is not known before the data is prepared.
      proposal: The fields of a layout that fits, where the configured one does not, or AUTO has chosen it.
      error: Share by which `memory` may be above what a run takes.
      shortage: Why its engines cannot start, whatever training takes.
      notes: What the reader should know, in sentences.
    """

    stage: str
    hardware: Hardware
    parameters: Parameters
    layout: Layout
    memory: Memory
    step_seconds: float
    tokens_per_second: float
    flops_per_token: float
    mfu: float
    steps: int | None
    proposal: str | None
    error: float
    shortage: str | None
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the devices have as much memory."""
        return self.memory.total <= self.hardware.device.memory and self.shortage is None

    @property
    def cannot_fit(self) -> bool:
        """Whether it is short of memory by more than the plan's own error."""
        return self.memory.total > (1 + self.error) * self.hardware.device.memory or self.shortage is not None

    @property
    def hours(self) -> float | None:
        """To finish, without start, evaluation and checkpoints."""
        return None if self.steps is None else self.steps * self.step_seconds / 3600

    @property
    def cost_usd(self) -> float | None:
        """Of those hours."""
        price = self.hardware.usd_per_hour
        return None if price is None or self.hours is None else price * self.hours

    def refusal(self) -> str:
        """Why the stage cannot run as it is, and what would; only where it does not fit."""
        if self.shortage is not None:
            return self.shortage
        held = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in self.memory.parts().items())
        return (
            f"needs {self.memory.total / _GIB:.1f} GiB on each of {self.hardware}, which have"
            f" {self.hardware.device.memory / _GIB:.1f} ({held}); {self.proposal}"
        )


@dataclasses.dataclass(frozen=True)
class Total:
    """Training of a whole job, one stage after the other. None: not known of every stage in it."""

    hours: float | None
    cost_usd: float | None


def total(found: Iterable[Estimate]) -> Total:
    """The sum over stages."""
    stages = list(found)
    hours, costs = [stage.hours for stage in stages], [stage.cost_usd for stage in stages]
    return Total(
        None if None in hours else sum(hour for hour in hours if hour is not None),
        None if None in costs else sum(cost for cost in costs if cost is not None),
    )


def of_job(job: job_pb2.JobConfig, hardware: Hardware) -> tuple[dict[str, Estimate], dict[str, str]]:
    """Estimates of the training stages, by name; and why the others of them have none."""
    found, missing = {}, {}
    for stage in job.stages:
        try:
            if trained := workloads.of_stage(job, stage, hardware):
                found[stage.name] = _estimate(stage.name, trained, hardware)
        except UserError as problem:
            missing[stage.name] = str(problem)
    return found, missing


def _estimate(name: str, trained: Trained, hardware: Hardware) -> Estimate:
    work, num_ranks = trained.work, trained.num_ranks
    layout, proposal, notes = _layout(trained, hardware)
    needed = _memory(trained, layout)
    found = speed.plan(work, layout)
    seconds = trained.passes * found.step_seconds
    if trained.rollouts:
        seconds += _rollout_seconds(trained.rollouts, trained, hardware)
    if needed.total > hardware.device.memory:
        proposal = _what_fits(trained, hardware)
    if num_ranks > hardware.per_host:
        notes = (*notes, "the network between hosts is not counted, which makes steps longer than this")
    is_measured = trained.is_measured and work.device.is_gpu and layout.recompute is not Recompute.SELECTIVE
    return Estimate(
        stage=name,
        hardware=hardware,
        parameters=shapes.count(work.config, work.lora, work.num_outputs),
        layout=layout,
        memory=needed,
        step_seconds=seconds,
        tokens_per_second=found.tokens_per_step / seconds,
        flops_per_token=found.flops_per_token,
        mfu=trained.passes * found.mfu * found.step_seconds / seconds,
        steps=trained.steps,
        proposal=proposal,
        error=_MEASURED_ERROR if is_measured else _OTHER_ERROR,
        shortage=_shortage(trained, hardware),
        notes=notes,
    )


def _layout(trained: Trained, hardware: Hardware) -> tuple[Layout, str | None, tuple[str, ...]]:
    """The configured layout, or the one that AUTO takes (where none fits, the smallest); a proposal; notes."""
    work, count = trained.work, trained.num_ranks
    if not trained.is_automatic:
        is_allowed = trained.rollouts is not None or proposals.is_allowed(work, trained.layout)
        if trained.layout.world_size == count and is_allowed:
            return trained.layout, None, trained.notes
        note = (
            f"the configured layout is not one of {count} ranks with this batch; numbers are those of"
            f" {trained.layout.world_size}"
        )
        return trained.layout, None, (*trained.notes, note)
    best = proposals.best(work, count, hardware.per_host)
    if best is not None:
        return best.layout, f"AUTO takes {proposals.describe(best.layout)}", trained.notes
    return proposals.smallest(work, count, hardware.per_host) or trained.layout, None, trained.notes


def _memory(trained: Trained, layout: Layout) -> Memory:
    """Of training, or of sampling beside a trainer that waits, whichever is more."""
    training = memory.plan(trained.work, layout)
    if trained.critic is not None:
        # Policy and critic take turns: the larger's activations, everything else of both.
        critic = memory.plan(trained.critic, layout)
        held = critic.weights + critic.optimizer + critic.gradients
        passing = max(0, critic.activations + critic.gathered - training.activations - training.gathered)
        training = dataclasses.replace(training, frozen=training.frozen + held + passing)
    rollouts = trained.rollouts
    if rollouts is None:
        return training
    if not trained.work.device.is_gpu:  # engines have processes of their own, on rank 0's host, and never sleep
        engine = _engine_weights(rollouts, trained.work) + _CPU_ENGINE_BYTES
        return dataclasses.replace(training, cache=rollouts.num_engines * engine // trained.num_ranks)
    if not rollouts.shares_gpus:
        return training
    engine = int(rollouts.memory_fraction * trained.work.device.memory)
    waiting = dataclasses.replace(training, gathered=0, gradients=0, activations=0, logits=0, exchange=0, cache=engine)
    training = dataclasses.replace(training, cache=_ASLEEP_BYTES)
    return max(training, waiting, key=lambda held: held.total)


def _engine_weights(rollouts: Rollouts, work: Workload) -> int:
    """Bytes on each of an engine's devices; adapters are a few more."""
    return work.number_bytes * shapes.count(work.config).stored // rollouts.gpus_per_engine


def _shortage(trained: Trained, hardware: Hardware) -> str | None:
    """An engine whose share of a GPU does not even hold its weights; nodes for engines alone may have other GPUs."""
    rollouts, device = trained.rollouts, trained.work.device
    if trained.before is not None:
        return _teacher_shortage(trained.before, trained)
    if rollouts is None or not device.is_gpu or hardware.num_for_engines:
        return None
    weights, share = _engine_weights(rollouts, trained.work), rollouts.memory_fraction * device.memory
    if weights <= share:
        return None
    return (
        f"the engines' weights take {weights / _GIB:.1f} GiB of each GPU, and rollout.gpu_memory_fraction"
        f" {rollouts.memory_fraction:g} of {device.name} is {share / _GIB:.1f}; raise it, or"
        " rollout.tensor_parallel_size, which splits them"
    )


def _teacher_shortage(before: Before, trained: Trained) -> str | None:
    """A teacher whose weights alone are more than the devices have."""
    device = trained.work.device
    ranks = 1 if before.is_whole else trained.num_ranks
    weights = trained.work.number_bytes * shapes.count(before.teacher.config).total // ranks
    if weights <= device.memory:
        return None
    cure = "use teacher_cache.maker: FORWARD, which shares it out" if before.is_whole else "use more devices"
    return (
        f"the teacher's weights take {weights / _GIB:.1f} GiB of each {device.name}, which has"
        f" {device.memory / _GIB:.1f}; {cure}, or a smaller teacher"
    )


def _rollout_seconds(rollouts: Rollouts, trained: Trained, hardware: Hardware) -> float:
    """Of sampling and of sending the weights; engines that run ahead cost only what training does not cover."""
    engines = rollouts.num_engines
    length = rollouts.prompt_tokens + rollouts.new_tokens / 2
    each = max(1, rollouts.num_answers // engines)
    rate = speed.decode_tokens_per_second(trained.work.config, hardware.device, each, length)
    sampling = rollouts.num_answers * rollouts.new_tokens / (rate * engines * rollouts.gpus_per_engine)
    sync = 2 * shapes.count(trained.work.config).total / hardware.device.link
    return sampling + sync


def _what_fits(trained: Trained, hardware: Hardware) -> str:
    """The cheapest change that does, in words."""

    def fits(found: proposals.Proposal | None) -> bool:
        return found is not None and _memory(trained, found.layout).total <= hardware.device.memory

    work = trained.work
    best = proposals.best(work, trained.num_ranks, hardware.per_host)
    if best is not None and fits(best):
        return f"this fits: {proposals.describe(best.layout)}"
    if found := proposals.fewest_ranks(work, trained.num_ranks, hardware.per_host):
        count, larger = found
        if fits(larger):
            batch = f" batch.global_blocks: {-(-max(work.global_blocks, count) // count) * count}" * (
                work.global_blocks % count != 0
            )
            return f"{count} x {hardware.device.name} fit: {proposals.describe(larger.layout)}{batch}"
    return "nothing up to 1,024 devices fits; use model.lora, a smaller packing.block_size, or a larger kind of GPU"
