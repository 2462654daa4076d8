"""Makes what is there equal to what is meant, from any state that a crash, a lost reply or a reclaimed node leaves.

    settle    launches whose outcome is unknown are sent again: same token, same request, same instances
    look      adopt instances of known launches; write down ends; end those that no launch explains
    fill      buy what is missing, candidate by candidate
    trim      give back what is too much, nodes that are not at work first

An instance is there only after its launch was written down, and the store is read after the cloud: so an instance that
no launch explains is nobody's launch in flight, and may be ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.store import Launch, Node, Store

# EC2 may not list what it has just launched. Until then absence means nothing.
_VISIBLE_AFTER_S = 120.0
NEVER_JOINED = "ended before it joined"


@dataclass(frozen=True)
class Instance:
    """A machine as the cloud lists it. `token` "": nothing says what launch it is of."""

    id: str
    token: str
    group: str
    address: str
    instance_type: str
    is_live: bool
    started_at: float
    zone: str = ""
    market: str = ""


class NoCapacity(Exception):  # noqa: N818 - an answer, not an error
    """This candidate has no room now."""


class TokenSpent(Exception):  # noqa: N818
    """The token stands for instances that have ended, or for another request."""


class Cloud(Protocol):
    """What the reconciler asks of a provider that rents machines."""

    def instances(self) -> list[Instance]:
        """Everything that carries the cluster's tag, ended ones included as long as they are listed."""

    def requests(self, group: str, count: int, attempt: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Token and request of each candidate, in order of preference."""

    def launch(self, request: dict[str, Any]) -> list[Instance]:
        """Sends it. Raises NoCapacity or TokenSpent; another error is for the user."""

    def terminate(self, instances: list[str]) -> None:
        """Ends instances; ended ones are ended again without complaint."""

    def usd_per_hour(self, instance_type: str) -> float:
        """The price, 0 where unknown."""


class Reconciler:
    """One cluster's. Every method may be called again after a crash in it.

    Args:
      allowed: Asked before each purchase with its count; a sentence says why not (over budget, being released).
    """

    def __init__(
        self,
        store: Store,
        cloud: Cloud,
        desired: Mapping[str, int],
        say: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._cloud = cloud
        self._desired = dict(desired)
        self._say = say
        self._clock = clock

    def aim(self, group: str, count: int) -> None:
        """From now on a group is to have so many nodes."""
        self._desired[group] = count

    def converge(self) -> list[str]:
        """One round. Returns a sentence for each group that could not be filled; empty: all is there."""
        self._settle()
        self.look()
        short = [reason for group, count in self._desired.items() if (reason := self._fill(group, count))]
        self._trim()
        return short

    def look(self) -> None:
        """Compares the cloud's list with the store's, and mends the store; ends orphans and nodes that are to leave."""
        found = {instance.id: instance for instance in self._cloud.instances()}
        known_tokens = {launch.token: launch for launch in self._store.launches()}
        self._adopt(found, known_tokens)
        for node in self._store.nodes():
            instance = found.get(node.instance)
            if instance is None and self._clock() - node.started_at < _VISIBLE_AFTER_S:
                continue
            if instance is None or not instance.is_live:
                reason = node.reason or (NEVER_JOINED if node.state == states.STARTING else "gone")
                self._store.move(node.instance, states.ENDED, reason, ended_at=self._clock())
            elif instance.address and instance.address != node.address:
                self._store.place(node.instance, instance.address)
        # In this order: a launch that is settled in between has its nodes recorded by the time that they are read.
        unsettled = {launch.token for launch in self._store.launches(states.INTENDED)}
        live = {node.instance for node in self._store.nodes(states.STARTING, states.ADMITTED, states.NOTICED)}
        ending = [i.id for i in found.values() if i.is_live and i.id not in live and i.token not in unsettled]
        if ending:
            self._say(f"ending {', '.join(sorted(ending))}: no longer wanted")
            self._cloud.terminate(sorted(ending))

    def release(self) -> bool:
        """Ends everything. False while something is still listed as live: ask again."""
        for node in self._store.nodes(states.STARTING, states.ADMITTED, states.NOTICED):
            self._store.move(node.instance, states.LEAVING, "released")
        for launch in self._store.launches(states.INTENDED):
            self._store.failed(launch.token, "released before its outcome was known")  # its nodes are orphans now
        self.look()
        return not any(instance.is_live for instance in self._cloud.instances())

    def _settle(self) -> None:
        for launch in self._store.launches(states.INTENDED):
            self._send(launch)

    def _send(self, launch: Launch) -> str:
        """Sends a launch that is written down. Returns "" when its nodes are recorded, else why it bought nothing."""
        try:
            instances = self._cloud.launch(launch.request)
        except NoCapacity as error:
            self._store.failed(launch.token, str(error))
            return str(error)
        except TokenSpent as error:
            self._store.failed(launch.token, str(error))
            return ""
        except ValueError as error:
            self._store.failed(launch.token, str(error))
            raise
        self._store.bought(launch.token, [self._node(instance, launch) for instance in instances])
        return ""

    def _fill(self, group: str, count: int) -> str:
        """Buys what is missing. Returns why nobody had it, or ""."""
        reasons: list[str] = []
        while missing := count - self._live_count(group):
            if missing < 0:
                return ""
            attempt = 1 + max((launch.attempt for launch in self._store.launches() if launch.group == group), default=0)
            outcome = self._buy(group, missing, attempt, reasons)
            if not outcome:
                return f"{group}: no capacity for {missing} nodes now ({'; '.join(dict.fromkeys(reasons))})"
        return ""

    def _buy(self, group: str, count: int, attempt: int, reasons: list[str]) -> bool:
        """Asks each candidate once; True when it is worth counting again."""
        for token, request in self._cloud.requests(group, count, attempt):
            launch = Launch(token, group, attempt, count, request, states.INTENDED)
            self._store.intend(launch)
            reason = self._send(launch)
            if not reason:
                return True
            reasons.append(reason)
            self._say(f"{group}: {reason}")
        return False

    def _trim(self) -> None:
        """More than meant can only be after the job's bounds or a quarantine changed; those at work go last."""
        for group in {node.group for node in self._store.nodes()}:
            nodes = [node for node in self._store.nodes(states.STARTING, states.ADMITTED) if node.group == group]
            nodes.sort(key=lambda node: node.state == states.ADMITTED)
            for node in nodes[: max(0, len(nodes) - self._desired.get(group, 0))]:
                self._store.move(node.instance, states.LEAVING, "too many")
        if self._store.nodes(states.LEAVING):
            self.look()

    def _adopt(self, found: Mapping[str, Instance], launches: Mapping[str, Launch]) -> None:
        """Records live instances whose launch is known but whose record is not: the reply or the launcher was lost."""
        recorded = {node.instance for node in self._store.nodes(*_EVERY_STATE)}
        for instance in found.values():
            launch = launches.get(instance.token)
            if instance.is_live and instance.id not in recorded and launch and launch.state != states.FAILED:
                self._store.bought(launch.token, [self._node(instance, launch)])

    def _live_count(self, group: str) -> int:
        return sum(node.group == group for node in self._store.nodes(states.STARTING, states.ADMITTED))

    def _node(self, instance: Instance, launch: Launch) -> Node:
        price = self._cloud.usd_per_hour(instance.instance_type)
        started = min(instance.started_at, self._clock())
        return Node(
            *(instance.id, launch.token, launch.group, instance.address, instance.instance_type, price, started),
            zone=instance.zone,
            market=instance.market,
            since=started,
        )


_EVERY_STATE = (states.STARTING, states.ADMITTED, states.NOTICED, states.LEAVING, states.ENDED)
