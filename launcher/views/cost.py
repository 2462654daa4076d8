"""What a run has cost: the time that its machines were at work, and the price of that where the job declares one."""

from dataclasses import dataclass

from finecut.launcher.views.run_view import RunView


@dataclass(frozen=True)
class Cost:
    """`hours` of all machines together, while any stage was at work. `usd` None: no price is declared."""

    hours: float
    price_usd_per_hour: float | None

    @property
    def usd(self) -> float | None:
        return None if self.price_usd_per_hour is None else self.hours * self.price_usd_per_hour


def of(view: RunView) -> Cost:
    """The cost so far. Stages side by side share the machines, so their times count once."""
    seconds, covered = 0.0, 0.0
    tries = [each for stage in view.stages for each in stage.history.tries]
    for each in sorted(tries, key=lambda each: each.started):
        ended = view.at if each.ended is None else each.ended
        start = max(each.started, covered)
        seconds += max(0.0, ended - start)
        covered = max(covered, ended)
    cluster = view.job.cluster
    price = cluster.price_usd_per_hour if cluster.HasField("price_usd_per_hour") else None
    return Cost(seconds / 3600, price)
