"""Moves GPUs between ranks and engines, by what both had to do. On rank 0 of a group that its driver starts again.

engines: seconds at work --+                             +--> kept (see split) -> the group stops at a step's border,
                           +--> policy: how many of each |    with a checkpoint and the samples that wait in it
ranks: seconds at work ----+                             +--> its next start has the new numbers of both
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from finecut.trainer.allocation.policy import AllocationPolicy, Bounds, PolicyConfig, StepTimes
from finecut.trainer.liveness import notice
from finecut.trainer.rl import split
from finecut.trainer.rl.split import Split
from finecut.trainer.rollout.balancing import Load
from finecut.trainer.rollout.config import AllocationConfig


class RankMoves:
    """The ranks and the engines of a run.

    Args:
      now: What the run has.
      engine_gpus: GPUs of an engine.
      rank_multiple: Ranks come in multiples of it, or the mesh would not be whole.
      stage: The stage's folder.
      ranks: Where notices to the group go.
      say: Takes sentences for the event log.
    """

    def __init__(
        self,
        config: AllocationConfig,
        now: Split,
        engine_gpus: int,
        rank_multiple: int,
        stage: Path,
        ranks: Path,
        say: Callable[[str], None],
    ) -> None:
        assert config.min_ranks is not None
        num_gpus = now.num_ranks + now.num_engines * engine_gpus
        most = min(num_gpus - config.min_ranks, config.max_engines * engine_gpus)
        bounds = Bounds(
            num_gpus,
            min_generating=config.min_engines * engine_gpus,
            min_training=num_gpus - most,
            group=engine_gpus,
            training_multiple=rank_multiple,
        )
        self._now = now
        self._engine_gpus = engine_gpus
        policy = PolicyConfig(move_s=config.rank_move_s)
        self._policy = AllocationPolicy(bounds, policy, now.num_engines * engine_gpus, now.work)
        self._stage, self._ranks, self._say = stage, ranks, say
        # The first step starts with samples of a checkpoint, or without engines that are warm.
        self._is_first = True
        self._is_moving = False

    def after_step(self, load: Load, step_s: float, waited_s: float) -> None:
        """Takes what a step took, of which ranks waited for samples `waited_s`; stops the group where a move pays."""
        if self._is_first or self._is_moving:
            self._is_first = False
            return
        engines, training_s = self._now.num_engines, step_s - waited_s
        times = StepTimes(engines * self._engine_gpus, load.busy_s / engines, training_s)
        generating = self._policy.after_step(times)
        if generating == engines * self._engine_gpus:
            return
        moved = (engines * self._engine_gpus - generating, generating // self._engine_gpus)
        wanted = Split(self._now.num_ranks + moved[0], moved[1], self._policy.work)
        split.write(self._stage, wanted)
        notice.give(self._ranks, split.MOVED)
        self._is_moving = True
        shares = f"{load.busy_s / engines / step_s:.0%} of the last step, and the ranks {training_s / step_s:.0%}"
        self._say(
            f"{wanted.num_ranks} ranks and {wanted.num_engines} engines would do better than {self._now.num_ranks} and"
            f" {engines}, which were at work {shares}: the group changes after a checkpoint"
        )
