"""What one training stage takes: parameters, memory, time, cost; whether it fits, and what would.

stage of the job -> Workload and Layout (workloads.py) -> memory.plan, speed.plan -> Estimate
"""

from __future__ import annotations

import dataclasses

from finecut.launcher.planning import workloads
from finecut.launcher.planning.hardware import Hardware
from finecut.launcher.planning.workloads import Rollouts, Trained
from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.trainer.planning import memory, proposals, shapes, speed
from finecut.trainer.planning.memory import Memory
from finecut.trainer.planning.shapes import Parameters
from finecut.trainer.planning.workload import Layout

# What an engine that sleeps keeps of a GPU: its process's context, and what vLLM does not give back.
_ASLEEP_BYTES = 2 * 2**30


@dataclasses.dataclass(frozen=True)
class Estimate:
    """One stage on the plan's hardware.

    Attributes:
      memory: Of one rank; with engines, at the moment that takes more.
      needed: Bytes of a device that this takes at most.
      steps: None: the length is not known before the data is prepared.
      proposal: The fields of a layout that fits, where the configured one does not, or AUTO has chosen it.
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
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the devices have as much memory."""
        return self.memory.total <= self.hardware.device.memory

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
        held = ", ".join(f"{name} {size / 2**30:.1f}" for name, size in self.memory.parts().items())
        return (
            f"needs {self.memory.total / 2**30:.1f} GiB on each of {self.hardware}, which have"
            f" {self.hardware.device.memory / 2**30:.1f} ({held}); {self.proposal}"
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
    work, layout, proposal = trained.work, trained.layout, None
    notes = list(trained.notes)
    if trained.is_automatic:
        best = proposals.best(work, hardware.count, hardware.per_host)
        if best is not None:
            layout, proposal = best.layout, f"AUTO takes {proposals.describe(best.layout)}"
    elif layout.world_size != hardware.count or not proposals.is_allowed(work, layout):
        notes.append(
            f"the configured layout is not one of {hardware.count} ranks with this batch; numbers are those of"
            f" {layout.world_size}"
        )
    needed = _memory(trained, layout)
    found = speed.plan(work, layout)
    seconds = trained.passes * found.step_seconds
    if trained.rollouts:
        seconds += _rollout_seconds(trained.rollouts, trained, hardware)
    if needed.total > hardware.device.memory:
        proposal = _what_fits(trained, hardware)
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
        notes=tuple(notes),
    )


def _memory(trained: Trained, layout: Layout) -> Memory:
    """Of training, or of sampling beside a trainer that waits, whichever is more."""
    training = memory.plan(trained.work, layout)
    if trained.critic is not None:
        # Policy and critic take turns: the larger's activations, everything else of both.
        critic = memory.plan(trained.critic, layout)
        held = critic.weights + critic.optimizer + critic.gradients
        passing = max(0, critic.activations + critic.gathered - training.activations - training.gathered)
        training = dataclasses.replace(training, frozen=training.frozen + held + passing)
    if trained.rollouts is None or not trained.rollouts.shares_gpus:
        return training
    engine = int(trained.rollouts.memory_fraction * trained.work.device.memory)
    waiting = dataclasses.replace(training, gathered=0, gradients=0, activations=0, logits=0, exchange=0, cache=engine)
    training = dataclasses.replace(training, cache=_ASLEEP_BYTES)
    return max(training, waiting, key=lambda held: held.total)


def _rollout_seconds(rollouts: Rollouts, trained: Trained, hardware: Hardware) -> float:
    """Of sampling and of sending the weights; engines that run ahead cost only what training does not cover."""
    engines = max(1, rollouts.num_engines or hardware.count // rollouts.gpus_per_engine)
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
    best = proposals.best(work, hardware.count, hardware.per_host)
    if best is not None and fits(best):
        return f"this fits: {proposals.describe(best.layout)}"
    if found := proposals.fewest_ranks(work, hardware.count, hardware.per_host):
        count, larger = found
        if fits(larger):
            batch = f" batch.global_blocks: {-(-max(work.global_blocks, count) // count) * count}" * (
                work.global_blocks % count != 0
            )
            return f"{count} x {hardware.device.name} fit: {proposals.describe(larger.layout)}{batch}"
    return "nothing up to 1,024 devices fits; use model.lora, a smaller packing.block_size, or a larger kind of GPU"
