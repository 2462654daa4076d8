"""What a cluster costs: an estimate before it is bought, and whether a budget covers it. Volumes are left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from finecut.launcher.providers.aws import instance_types
from finecut.proto import job_pb2
from finecut.proto.config import Problem

# Nodes that are bought for less than it takes to boot, load a model and save a checkpoint are money thrown away.
_LEAST_HOURS = 0.25


@dataclass(frozen=True)
class Cost:
    """US dollars. `most`: if every group is as large as may be, of its dearest type. None: a price is not known."""

    per_hour: float | None
    most_per_hour: float | None
    budget: float | None

    @property
    def hours_in_budget(self) -> float | None:
        """How long the budget lasts at the dearest choice."""
        if self.budget is None or not self.most_per_hour:
            return None
        return self.budget / self.most_per_hour

    def __str__(self) -> str:
        if self.per_hour is None or self.most_per_hour is None:
            return "cost unknown: a type has no list price; set cluster.aws.prices"
        text = f"${self.per_hour:,.2f} an hour"
        if self.most_per_hour > self.per_hour:
            text += f" (at most ${self.most_per_hour:,.2f})"
        if self.hours_in_budget is not None:
            text += f"; the budget of ${self.budget:,.2f} lasts {self.hours_in_budget:,.1f} hours"
        return text


def estimate(job: job_pb2.JobConfig) -> Cost:
    """The cost of all node groups at work."""
    budget = job.cluster.max_cost_usd if job.cluster.HasField("max_cost_usd") else None
    first, most = 0.0, 0.0
    for group in job.cluster.node_groups:
        prices = [instance_types.price(name, job.cluster.aws) for name in group.instance_types]
        known = [price for price in prices if price is not None]
        if not known or len(known) < len(prices):
            return Cost(None, None, budget)
        first += group.node_count * known[0]
        most += max(group.node_count, group.scaling.max_nodes) * max(known)
    return Cost(first, most, budget)


def check(job: job_pb2.JobConfig) -> Iterator[Problem]:
    """A budget that cannot be kept or that buys nothing."""
    cost = estimate(job)
    if cost.budget is None:
        return
    path = "cluster.max_cost_usd"
    if cost.hours_in_budget is None:
        yield Problem(path, "cannot be kept while a type has no known price; set cluster.aws.prices for it")
    elif cost.hours_in_budget < _LEAST_HOURS:
        least = _LEAST_HOURS * (cost.most_per_hour or 0)
        yield Problem(
            path,
            f"${cost.budget:,.2f} pays for {60 * cost.hours_in_budget:.0f} minutes of these nodes, less than a start "
            f"takes; set at least {least:,.2f}, or ask for fewer or smaller nodes",
        )
