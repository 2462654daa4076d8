"""Which layout to take: the fastest of those that fit, tried one by one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator

from finecut.proto.config import layout as rules
from finecut.trainer.planning import memory, speed
from finecut.trainer.planning.memory import Memory
from finecut.trainer.planning.speed import Speed
from finecut.trainer.planning.workload import Layout, Recompute, Workload

# A layout that changes more must gain at least this much, so that rounding of an estimate decides nothing.
_WORTH = 0.03
_MOST_MICRO_BLOCKS = 16


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A layout that fits, and what it takes."""

    layout: Layout
    memory: Memory
    speed: Speed


def fits(needed: Memory, work: Workload) -> bool:
    """Whether a device has as much."""
    return needed.total <= work.device.memory


def best(work: Workload, world_size: int, ranks_per_host: int) -> Proposal | None:
    """The fastest layout of so many ranks that fits; None: none does.

    Of layouts within 3% the first is taken: fewer ranks that split matrices, less recomputed, nothing offloaded,
    smaller micro-batches.
    """
    chosen: Proposal | None = None
    for layout in _layouts(work, world_size, ranks_per_host):
        needed = memory.plan(work, layout)
        if not fits(needed, work):
            continue
        found = speed.plan(work, layout)
        if chosen is None or found.step_seconds < (1 - _WORTH) * chosen.speed.step_seconds:
            chosen = Proposal(layout, needed, found)
    return chosen


def smallest(work: Workload, world_size: int, ranks_per_host: int) -> Layout | None:
    """The layout that takes least memory, whether it fits or not; None: the rules allow none."""
    layouts = _layouts(work, world_size, ranks_per_host)
    return min(layouts, key=lambda layout: memory.plan(work, layout).total, default=None)


def fewest_ranks(
    work: Workload, world_size: int, ranks_per_host: int, most: int = 1_024
) -> tuple[int, Proposal] | None:
    """The next power of two beyond `world_size` at which something fits, with the batch grown to reach every rank."""
    count = 1
    while count <= most:
        if count > world_size:
            blocks = max(work.global_blocks, count)
            larger = dataclasses.replace(work, global_blocks=-(-blocks // count) * count)
            if proposal := best(larger, count, ranks_per_host):
                return count, proposal
        count *= 2
    return None


def _layouts(work: Workload, world_size: int, ranks_per_host: int) -> Iterator[Layout]:
    """Those that the rules allow, from what changes least."""
    modes = (Recompute.OFF, Recompute.FULL) if work.compiled else tuple(Recompute)
    offloads = (False, True) if work.lora is None and work.device.is_gpu else (False,)
    tensor_sizes = [n for n in (1, 2, 4, 8) if world_size % n == 0 and n <= ranks_per_host]
    if not work.device.is_gpu or work.num_outputs is not None:
        tensor_sizes = [1]  # splits gain nothing on a CPU, and output heads are not split
    hosts = max(1, world_size // ranks_per_host)
    replicas = [1, hosts] if hosts > 1 and world_size % hosts == 0 else [1]
    for tensor, offload, mode, replicate in itertools.product(tensor_sizes, offloads, modes, replicas):
        if world_size % (tensor * replicate):
            continue
        shard = world_size // (tensor * replicate)
        for micro in _micro_blocks(work, shard * replicate):
            layout = Layout(shard, replicate, tensor, offload, mode, micro)
            if is_allowed(work, layout):
                yield layout


def _micro_blocks(work: Workload, data_size: int) -> list[int]:
    own, left = divmod(work.global_blocks, data_size)
    return [] if left else [n for n in range(1, min(own, _MOST_MICRO_BLOCKS) + 1) if own % n == 0]


def is_allowed(work: Workload, layout: Layout) -> bool:
    """Whether the contract's rules let these ranks share the model and the batch."""
    config = work.config
    asked = rules.Layout(
        layout.world_size,
        layout.shard_size,
        layout.replicate_size,
        layout.tensor_size,
        work.global_blocks,
        layout.micro_blocks,
    )
    sizes = rules.ModelSizes(
        config.num_heads,
        config.num_key_heads,
        config.intermediate_size,
        config.padded_vocabulary_size,
        config.experts is not None,
    )
    return not any(rules.check(asked, sizes, "training"))


def describe(layout: Layout) -> str:
    """As fields of a training config, those that differ from their defaults."""
    parts = [f"shard_size: {layout.shard_size}"] if layout.shard_size > 1 else []
    parts += [f"replicate_size: {layout.replicate_size}"] if layout.replicate_size > 1 else []
    parts += [f"tensor_parallel_size: {layout.tensor_size}"] if layout.tensor_size > 1 else []
    parts += ["offload_optimizer: true"] if layout.offload_optimizer else []
    words = [f"parallelism {{ {' '.join(parts)} }}"] if parts else []
    if layout.recompute is not Recompute.OFF:
        words.append(f"activation_checkpointing: {layout.recompute.value}")
    words.append(f"batch {{ micro_blocks: {layout.micro_blocks} }}")
    return " ".join(words)
