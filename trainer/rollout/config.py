"""The rollout part of a recipe, as the recipes see it."""

from __future__ import annotations

import dataclasses
import enum

from finecut.proto import rollout_pb2
from finecut.trainer.rollout.sampling import SamplingParameters


class Placement(enum.Enum):
    """Who shares GPUs with whom; the values are the contract's names."""

    # Engines and trainer take turns on the same GPUs.
    COLOCATED = "COLOCATED"
    # Engines have GPUs of their own and run ahead of the trainer.
    SPLIT = "SPLIT"


@dataclasses.dataclass(frozen=True)
class MultiTurn:
    """Turns between policy and environment."""

    # Most assistant turns.
    max_turns: int
    # "package.module:name".
    environment: str


@dataclasses.dataclass(frozen=True)
class HeldOutConfig:
    """Answers to held-out prompts while training. `max_prompts` None: all of the split."""

    every_steps: int
    max_prompts: int | None
    sampling: SamplingParameters

    @classmethod
    def from_proto(cls, proto: rollout_pb2.Rollout.HeldOut, max_new_tokens: int) -> HeldOutConfig:
        """Of a resolved job. Greedy is top-k of one: engines take it beside answers that are sampled."""
        sampling = (
            SamplingParameters(max_new_tokens, temperature=proto.temperature)
            if proto.temperature
            else SamplingParameters(max_new_tokens, top_k=1)
        )
        return cls(proto.every_steps, proto.max_prompts if proto.HasField("max_prompts") else None, sampling)


@dataclasses.dataclass(frozen=True)
class AllocationConfig:
    """How many engines there may be, and what starting some is taken to cost.

    Attributes:
      min_ranks: The fewest ranks, where GPUs move between them and engines; None: ranks stay.
      rank_move_s: What such a move is taken to cost.
    """

    min_engines: int
    max_engines: int
    move_s: float
    min_ranks: int | None = None
    rank_move_s: float = 0.0

    @classmethod
    def from_proto(cls, proto: rollout_pb2.Rollout.Allocation) -> AllocationConfig:
        """Of a resolved job."""
        return cls(
            proto.min_engine_count,
            proto.max_engine_count,
            proto.move_time.ToTimedelta().total_seconds(),
            proto.min_rank_count if proto.HasField("min_rank_count") else None,
            proto.rank_move_time.ToTimedelta().total_seconds(),
        )


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Fields of finecut.v1.Rollout, resolved."""

    prompts_per_step: int
    sampling: SamplingParameters
    # At the start. None: one for each tensor-parallel group that fits; with an allocation, the fewest.
    engine_count: int | None
    tensor_parallel_size: int
    gpu_memory_fraction: float
    placement: Placement
    max_staleness: int
    max_logprob_drift: float
    # None: one turn.
    multi_turn: MultiTurn | None
    # None: the engines stay.
    allocation: AllocationConfig | None
    # None: nothing is held out.
    evaluation: HeldOutConfig | None

    @property
    def most_engines(self) -> int | None:
        """Engines that there may be; None: as many as fit."""
        return self.allocation.max_engines if self.allocation else self.engine_count

    @staticmethod
    def from_proto(rollout: rollout_pb2.Rollout) -> RolloutConfig:
        """Of a resolved job. Raises UserError for sampling whose log-probabilities would not be exact."""
        placement = Placement(rollout_pb2.Rollout.Placement.Name(rollout.placement))
        default_fraction = 0.5 if placement is Placement.COLOCATED else 0.9
        turns = rollout.multi_turn
        return RolloutConfig(
            prompts_per_step=rollout.prompts_per_step,
            sampling=SamplingParameters(
                max_new_tokens=rollout.max_new_tokens,
                temperature=rollout.temperature,
                top_p=rollout.top_p,
                top_k=rollout.top_k if rollout.HasField("top_k") else None,
            ),
            engine_count=rollout.engine_count if rollout.HasField("engine_count") else None,
            tensor_parallel_size=rollout.tensor_parallel_size,
            gpu_memory_fraction=(
                rollout.gpu_memory_fraction if rollout.HasField("gpu_memory_fraction") else default_fraction
            ),
            placement=placement,
            max_staleness=rollout.max_staleness,
            max_logprob_drift=rollout.max_logprob_drift,
            multi_turn=MultiTurn(turns.max_turns, turns.environment) if rollout.HasField("multi_turn") else None,
            allocation=AllocationConfig.from_proto(rollout.allocation) if rollout.HasField("allocation") else None,
            evaluation=(
                HeldOutConfig.from_proto(rollout.evaluation, rollout.max_new_tokens)
                if rollout.HasField("evaluation")
                else None
            ),
        )
