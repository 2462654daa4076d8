"""Starts the engines of a run beside the ranks of the trainer.

    GPUs, COLOCATED   engine i on the GPUs of ranks i * tp .. i * tp + tp - 1; they take turns     weights by CUDA IPC
    GPUs, SPLIT       engines on GPUs of their own, which the ranks left free                      weights by NCCL
    CPUs              engines on rank 0's host, which share its cores with the ranks               by shared memory

Rank 0 owns the engines: they end with it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable

import ray
import torch
import torch.distributed as dist

from finecut.proto.config import UserError
from finecut.proto.run import node_roles, ray_nodes
from finecut.trainer.config import Precision, TrainingConfig
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.models.lora import LoraConfig
from finecut.trainer.parallel import precision as number_formats
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.rl.split import Split
from finecut.trainer.rollout import backends
from finecut.trainer.rollout.config import Placement, RolloutConfig
from finecut.trainer.rollout.engine_config import EngineConfig
from finecut.trainer.rollout.engine_group import RayEngines, Seat, Share
from finecut.trainer.rollout.engine_pool import FleetConfig
from finecut.trainer.rollout.fleet import Fleet

# vLLM's own default for one GPU of 80 GB is 256 at a time (1024 where it finds much memory).
_MAX_SEQUENCES = 256


@dataclasses.dataclass(frozen=True)
class EnginePlan:
    """What the engines of a run are; the same on every rank."""

    fleet: FleetConfig
    # Whether engines and ranks take turns on the same GPUs, or cores.
    takes_turns: bool

    @property
    def engine(self) -> EngineConfig:
        """Of each engine."""
        return self.fleet.engine

    @property
    def sends_adapters(self) -> bool:
        """Whether adapters are sent instead of whole weights."""
        return self.engine.adapter_rank > 0


def plan(
    rollout: RolloutConfig,
    source: ModelSource,
    lora: LoraConfig | None,
    training: TrainingConfig,
    precision: Precision,
    max_sequence_tokens: int,
    devices: Devices,
    kept: Split | None = None,
) -> EnginePlan:
    """Who sits where. Collective. Raises UserError for engines that do not fit beside the ranks.

    `kept`: what an earlier start has moved engines to.
    """
    on_gpu = devices.device.type == "cuda"
    takes_turns = rollout.placement is Placement.COLOCATED
    if takes_turns or not on_gpu:
        seats = _seats(rollout, devices)
    else:
        seats = () if _in_cluster() else _spare_seats(rollout, devices)
    engine = EngineConfig(
        model=source.base.absolute(),
        number_type=str(number_formats.dtype_of(precision)).removeprefix("torch."),
        max_sequence_tokens=max_sequence_tokens,
        max_sequences=_MAX_SEQUENCES,
        tensor_parallel_size=rollout.tensor_parallel_size,
        gpu_memory_fraction=rollout.gpu_memory_fraction,
        transfer_backend=_backend(on_gpu, takes_turns),
        can_sleep=takes_turns and on_gpu,
        adapter_rank=lora.rank if lora else 0,
        # Weights come from the trainer; under adapters the base is read once, and its checksums are compared.
        load_weights=lora is not None,
        # A seed for each sequence costs GPUs a little.
        seeded=training.deterministic or not on_gpu,
    )
    size = rollout.tensor_parallel_size
    num_engines = len(seats) or rollout.engine_count or max(1, _free_gpus(devices) // size)
    if rollout.allocation:
        num_engines = rollout.engine_count or rollout.allocation.min_engines
        if kept:
            room = len(seats) or _room(size, devices)
            num_engines = max(rollout.allocation.min_engines, min(kept.num_engines, room))
    share = Share(cpus=1.0, gpus=float(size))
    return EnginePlan(FleetConfig(engine, num_engines, share, seats, run_seed=training.seed), takes_turns)


def start(fleet: FleetConfig, resync: Callable[[RayEngines], None], on_message: Callable[[str], None]) -> Fleet:
    """The engines, ready. On rank 0."""
    join_ray()
    return Fleet(fleet, resync=resync, on_message=on_message)


def join_ray() -> None:
    """A program that has imported Ray, but not started it, gets one of this machine; see also local_cluster.py."""
    if not ray.is_initialized():
        # Ray's workers run at nice 15 otherwise, and every other program would go first.
        os.environ.setdefault("RAY_worker_niceness", "0")
        ray.init(address="local", include_dashboard=False, log_to_driver=False)


def _in_cluster() -> bool:
    """Whether this rank is an actor of a Ray cluster, which then knows which GPUs are free."""
    return ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None


def _spare_seats(rollout: RolloutConfig, devices: Devices) -> tuple[Seat, ...]:
    """Ranks under torchrun, or alone: engines on the GPUs of this host that come after those of the ranks."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    gpus = visible if visible != [""] else [str(number) for number in range(torch.cuda.device_count())]
    spare, size = gpus[devices.world_size :], rollout.tensor_parallel_size
    count = rollout.most_engines or len(spare) // size
    if not count or count * size > len(spare):
        raise UserError(
            f"rollout.placement: SPLIT: {max(1, count)} engines of {size} GPUs beside {devices.world_size} ranks need"
            f" more than the {len(gpus)} GPUs of this host; start fewer ranks, or use COLOCATED"
        )
    node = _node_of_main(devices)
    return tuple(Seat(node, tuple(spare[first * size : (first + 1) * size])) for first in range(count))


def _backend(on_gpu: bool, takes_turns: bool) -> str:
    if not on_gpu:
        return backends.SHARED_MEMORY
    return backends.IPC if takes_turns else backends.NCCL


def _seats(rollout: RolloutConfig, devices: Devices) -> tuple[Seat, ...]:
    """Where engines share with ranks. Collective."""
    size = rollout.tensor_parallel_size
    if devices.device.type != "cuda":
        if size > 1:
            raise UserError(f"rollout.tensor_parallel_size: {size}: engines on CPUs are not split; leave it unset")
        return (Seat(_node_of_main(devices)),) * (rollout.most_engines or 1)
    ranks = _gather(_own_gpu(devices), devices)
    fitting = len(ranks) // size
    count = rollout.engine_count or fitting
    if len(ranks) % size or count != fitting:
        raise UserError(
            f"rollout: {count} engines of {size} GPUs on the GPUs of {len(ranks)} ranks: where they take turns, every"
            f" GPU has an engine; leave engine_count unset, and use a tensor_parallel_size that divides {len(ranks)}"
        )
    groups = [ranks[first : first + size] for first in range(0, len(ranks), size)]
    if any(len({seat.node_id for seat in group}) > 1 for group in groups):
        raise UserError(
            f"rollout.tensor_parallel_size: {size}: an engine's GPUs must be of one host; use a smaller one"
        )
    return tuple(Seat(group[0].node_id, tuple(gpu for seat in group for gpu in seat.gpus)) for group in groups)


def _own_gpu(devices: Devices) -> Seat:
    """The node and the GPU of this rank."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    number = torch.cuda.current_device()
    gpu = visible.split(",")[number] if visible else str(number)
    if _in_cluster():
        return Seat(ray.get_runtime_context().get_node_id(), (gpu,))
    return Seat(_node_of_main(devices), (gpu,))  # under torchrun, which starts ranks on this host only


def _node_of_main(devices: Devices) -> str:
    """Ray's name of rank 0's node."""
    if devices.is_main:
        join_ray()
    return devices.from_main(ray.get_runtime_context().get_node_id() if devices.is_main else "")


def _gather(own: Seat, devices: Devices) -> list[Seat]:
    found: list[Seat] = [own] * devices.world_size
    dist.all_gather_object(found, own)
    return found


def _free_gpus(devices: Devices) -> int:
    """GPUs of the cluster that no rank has."""
    if not devices.is_main:
        return int(devices.from_main(0))
    join_ray()
    cluster, nodes = ray.cluster_resources(), [node["Resources"] for node in ray.nodes() if node["Alive"]]
    total = int(node_roles.of_role(node_roles.ROLLOUT, cluster, nodes).get("GPU", 0))
    # Ranks are elsewhere where engines have nodes of their own.
    taken = 0 if cluster.get(node_roles.resource(node_roles.ROLLOUT)) else devices.world_size
    return int(devices.from_main(max(0, total - taken)))


def _room(engine_gpus: int, devices: Devices) -> int:
    """Engines that the cluster has GPUs for now; others may have taken what engines of an earlier start had."""
    if not devices.is_main:
        return int(devices.from_main(0))
    join_ray()
    role = node_roles.asked(node_roles.ROLLOUT, ray.cluster_resources())
    return int(devices.from_main(node_roles.room(engine_gpus, role, ray_nodes.free().values())))
