"""What moves GPUs in a run with rollouts: nothing, engines alone (see allocation), or ranks too (see rank_moves)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

from finecut.proto.run import given_back
from finecut.trainer.liveness.liveness import DRIVEN
from finecut.trainer.rl import split
from finecut.trainer.rl.allocation import Allocation
from finecut.trainer.rl.rank_moves import RankMoves
from finecut.trainer.rl.setup import RlSetup
from finecut.trainer.rl.split import Split
from finecut.trainer.rollout.balancing import Load
from finecut.trainer.rollout.fleet import Fleet


class Mover(Protocol):
    """Told after each step what engines and ranks had to do."""

    def after_step(self, load: Load, step_s: float, waited_s: float) -> None: ...


def mover(setup: RlSetup, fleet: Fleet, say: Callable[[str], None]) -> Mover | None:
    """Of a run, on rank 0. `say` takes sentences for the event log."""
    config, place, num_ranks = setup.config.rollout.allocation, setup.place, setup.devices.world_size
    if config is None:
        return None
    stage, engine_gpus = place.events.parent, setup.plan.engine.tensor_parallel_size
    if config.min_ranks is not None and os.environ.get(DRIVEN):
        now = Split(num_ranks, fleet.num_engines, setup.kept.work if setup.kept else None)
        mesh = setup.config.training.parallelism
        return RankMoves(config, now, engine_gpus, mesh.tensor_size * mesh.replicate_size, stage, place.ranks, say)
    if config.min_ranks is not None:
        say("nobody starts these ranks again, so their number stays")

    def give_back(num_engines: int) -> None:
        given_back.tell(stage, 0 if setup.plan.fleet.seats else num_engines * engine_gpus)

    def keep(num_engines: int) -> None:
        split.write(stage, Split(num_ranks, num_engines))

    return Allocation(config, num_ranks, fleet, say, give_back, keep)
