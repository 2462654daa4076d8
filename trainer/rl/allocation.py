"""Moves engines between the steps of a run, by what they and the ranks had to do. On rank 0.

    engines: seconds at work --+                      +--> start: no request before they have the next version
                               +--> policy: how many -+
    ranks: seconds at work ----+                      +--> leave: once they have answered what they were asked

GPUs of engines that left are free for other stages of the job, which the launcher is told of. Engines that find no room
wait for it between steps: until another stage has ended, or a group of nodes that scales has grown.
"""

from __future__ import annotations

from collections.abc import Callable

from finecut.proto.config import UserError
from finecut.trainer.allocation.policy import AllocationPolicy, Bounds, PolicyConfig, StepTimes
from finecut.trainer.rollout.balancing import Load
from finecut.trainer.rollout.config import AllocationConfig
from finecut.trainer.rollout.fleet import Fleet


class Allocation:
    """The engines of a run."""

    def __init__(
        self,
        config: AllocationConfig,
        num_ranks: int,
        fleet: Fleet,
        say: Callable[[str], None],
        give_back: Callable[[int], None],
        keep: Callable[[int], None],
    ) -> None:
        """What it tells: `say` sentences for the event log, `give_back` how many engines others may have the GPUs of,
        `keep` how many a run that resumes is to start with."""
        # Counted in engines: what a rank does takes as long however many GPUs an engine has.
        self._bounds = Bounds(
            num_gpus=config.max_engines + num_ranks, min_generating=config.min_engines, num_training=num_ranks
        )
        self._num_ranks = num_ranks
        self._config = PolicyConfig(move_s=config.move_s)
        self._policy = AllocationPolicy(self._bounds, self._config, fleet.num_engines)
        self._fleet = fleet
        self._say = say
        self._give_back, self._keep = give_back, keep
        self._awaited = 0
        self._claimed = 0
        self._claim(fleet.num_engines)

    def after_step(self, load: Load, step_s: float, waited_s: float) -> None:
        """Takes what a step took, of which ranks waited for samples `waited_s`; moves engines where that pays."""
        now = self._fleet.num_engines
        training_s = step_s - waited_s
        wanted = self._policy.after_step(StepTimes(now, load.busy_s / now, training_s))
        self._claim(max(now, wanted))  # before others take what is free
        if not self._fleet.has_room(wanted):
            if wanted != self._awaited:
                self._say(f"{wanted} engines would do better than {now}: the cluster is asked for room")
            self._awaited = wanted
            return
        self._awaited = 0
        if wanted == now:
            return
        shares = f"{load.busy_s / now / step_s:.0%} of the last step, and the ranks {training_s / step_s:.0%}"
        try:
            self._fleet.resize(wanted)
        except UserError as error:
            self._policy = AllocationPolicy(self._bounds, self._config, now)
            self._claim(now)
            self._say(f"{now} engines stay, although {wanted} would do better: {error}")
            return
        self._claim(wanted)
        self._keep(wanted)
        self._say(f"{wanted} engines generate from now on instead of {now}: they were at work {shares}")

    def _claim(self, num_engines: int) -> None:
        """So many are at work, or waited for; what is left of the most is for others."""
        if num_engines != self._claimed:
            self._claimed = num_engines
            self._give_back(self._bounds.num_gpus - self._num_ranks - num_engines)


def utilisation(load: Load, num_engines: int, num_ranks: int, step_s: float, waited_s: float) -> dict[str, float]:
    """Metrics of a step."""
    return {
        "ranks": float(num_ranks),
        "engines": float(num_engines),
        "engine_utilisation": min(1.0, load.busy_s / num_engines / step_s),
        "rank_utilisation": 1.0 - waited_s / step_s,
        "rollout_imbalance": load.imbalance,
    }
