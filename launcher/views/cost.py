"""What a run has cost: what its machines were bought for, or its time at work at the price that the job declares."""

from dataclasses import dataclass

from finecut.launcher.reconcile.nodes import cost_of
from finecut.launcher.views.run_view import RunView


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
      hours: While any stage was at work.
      usd: None: no price is declared, and nothing was bought.
      usd_per_hour: The declared price. None: there is none, or each machine has its own.
    """

    hours: float
    usd: float | None
    usd_per_hour: float | None = None


def of(view: RunView) -> Cost:
    """The cost so far. Stages side by side share the machines, so their times count once."""
    seconds, covered = 0.0, 0.0
    tries = [each for stage in view.stages for each in stage.history.tries]
    for each in sorted(tries, key=lambda each: each.started):
        ended = view.at if each.ended is None else each.ended
        start = max(each.started, covered)
        seconds += max(0.0, ended - start)
        covered = max(covered, ended)
    hours, cluster = seconds / 3600, view.job.cluster
    if view.holdings.nodes:
        return Cost(hours, cost_of(list(view.holdings.nodes)))
    if not cluster.HasField("price_usd_per_hour"):
        return Cost(hours, None)
    return Cost(hours, hours * cluster.price_usd_per_hour, cluster.price_usd_per_hour)
