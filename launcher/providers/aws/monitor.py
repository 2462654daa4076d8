"""Keeps a cluster what it is meant to be while stages run, in a thread of its own.

    round: renew the lease -> read notices -> look at Ray's members -> replace what leaves -> admit what has joined

A node is replaced alone, and others keep working. Errors of AWS end a round, not the cluster: while only the API is
away, nodes that Ray sees alive are left alone.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable

from finecut.launcher.providers.aws import notices, secret
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.sizing import Sizing
from finecut.launcher.providers.hosts import Hosts
from finecut.launcher.providers.membership import Member, Membership
from finecut.launcher.providers.renewal import Renewal
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import NEVER_JOINED, Reconciler
from finecut.launcher.reconcile.store import Node, Store, SupersededError
from finecut.proto import job_pb2
from finecut.proto.config import UserError

_log = logging.getLogger("finecut.launcher")
_ROUND_S = 2.0
_LEASE_S = 60.0
# The image boots, drivers load, the bundle is fetched.
_JOIN_DEADLINE_S = 900.0
# A Ray node may restart; a machine that has not come back by then is replaced.
_REJOIN_S = 90.0
_NOTICE_S = 120.0
_DID_NOT_JOIN = "did not join"
_MOST_UNFIT = 3


class Monitor:
    """One cluster's. `wait_for_nodes` runs in the caller's thread, everything later in the monitor's."""

    def __init__(
        self,
        job: job_pb2.JobConfig,
        names: Names,
        api: Api,
        store: Store,
        reconciler: Reconciler,
        membership: Membership,
        say: Callable[[str], None],
        hosts: Hosts | None = None,
    ) -> None:
        self._budget = job.cluster.max_cost_usd if job.cluster.HasField("max_cost_usd") else None
        self._names = names
        self._api = api
        self._store = store
        self._reconciler = reconciler
        self._membership = membership
        self._say = say
        self._sizing = Sizing(job, store, reconciler, membership, say)
        self._hosts = hosts
        self._renewal = Renewal(membership, self._renew, say)
        self._told: dict[str, str] = {}  # instance -> address that its secret names
        self._deadlines: dict[str, float] = {}  # instance -> when it is given up
        self._lease_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cluster-monitor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when no round is at work any more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def wait_for_nodes(self) -> None:
        """Returns once every node has joined; nodes that do not within the deadline are replaced, once.

        Raises:
          UserError: A replacement did not join either, or AWS refused something.
        """
        deadline = time.monotonic() + 2 * _JOIN_DEADLINE_S
        told = ""
        while waiting := self._starting():
            if time.monotonic() > deadline:
                raise UserError(
                    f"nodes {', '.join(waiting)} did not join within {2 * _JOIN_DEADLINE_S / 60:g} minutes; see"
                    " the console output of one of them in EC2"
                )
            text = f"waiting for {len(waiting)} nodes to join"
            if text != told:
                self._say(text)
                told = text
            time.sleep(_ROUND_S)
            self.round()

    def round(self) -> None:
        """One look at everything. Called again after an error, it goes on.

        Raises:
          UserError: One node after the other is unfit; no more are bought.
          SupersededError: Another launcher has the cluster; nothing was done.
        """
        self._store.confirm()
        self._renew_lease()
        self._renewal.round()
        self._take_notices()
        self._compare_members()
        if self._store.nodes(states.LEAVING) or self._due():
            self._sizing.round()
            self._reconciler.look()
            self._refuse_unfit_nodes()
            for reason in self._reconciler.converge():
                self._say(reason)
        self._tell_nodes()
        self._keep_budget()

    def _run(self) -> None:
        while not self._stopping.wait(_ROUND_S):
            try:
                self.round()
            except SupersededError as error:
                self._say(str(error))
                os.kill(os.getpid(), signal.SIGTERM)
                return
            except Exception as error:  # the next round tries again; the cluster works on without its monitor
                _log.warning("a round of the monitor failed", exc_info=error)

    def _starting(self) -> list[str]:
        nodes = self._store.nodes(states.STARTING, states.ADMITTED)
        return [node.instance for node in nodes if node.state == states.STARTING]

    def _due(self) -> bool:
        """A full look at EC2, now and then."""
        now = time.monotonic()
        if now < self._deadlines.get("look", 0.0):
            return False
        self._deadlines["look"] = now + 5 * _ROUND_S
        return True

    def _renew_lease(self) -> None:
        if time.monotonic() - self._lease_at >= _LEASE_S or not self._lease_at:
            secret.renew_lease(self._api, self._names, f"{time.time():.0f}")
            self._lease_at = time.monotonic()

    def _take_notices(self) -> None:
        queue = self._store.fact("queue")
        if not queue:
            return
        nodes = {node.instance: node for node in self._store.nodes(states.STARTING, states.ADMITTED)}
        for notice in notices.receive(self._api, queue):
            node = nodes.get(notice.instance)
            if node is None:
                continue
            member = self._membership.members().get(node.instance)
            if member and member.is_alive and not member.is_draining:
                self._membership.drain(node.instance, notice.reason, notice.seconds - _ROUND_S)
            self._notice(node, notice.reason, notice.seconds)

    def _compare_members(self) -> None:
        members = self._membership.members()
        now = time.monotonic()
        for node in self._store.nodes():
            member = members.get(node.instance)
            match node.state:
                case states.STARTING:
                    self._admit_or_give_up(node, member, now)
                case states.ADMITTED if member and member.is_draining:
                    self._notice(node, "its machine asked to leave", _NOTICE_S)  # the agent on it heard first
                case states.ADMITTED if member is None or not member.is_alive:
                    self._wait_for_return(node, now)
                case states.ADMITTED:
                    self._deadlines.pop(node.instance, None)
                case states.NOTICED:
                    self._let_go(node, member, now)

    def _admit_or_give_up(self, node: Node, member: Member | None, now: float) -> None:
        if member and member.is_alive:
            self._store.move(node.instance, states.ADMITTED)
            self._deadlines.pop(node.instance, None)
            self._say(f"node {node.instance} ({node.instance_type}, {node.address}) has joined")
        elif now > self._deadlines.setdefault(node.instance, now + _JOIN_DEADLINE_S):
            self._quarantine(node, _DID_NOT_JOIN)

    def _wait_for_return(self, node: Node, now: float) -> None:
        if node.instance not in self._deadlines:
            self._say(f"node {node.instance} is not heard of; it has {_REJOIN_S:g} s to come back")
            self._deadlines[node.instance] = now + _REJOIN_S
            self._reconciler.look()  # an instance that has ended is replaced in this round
        elif now > self._deadlines[node.instance]:
            self._quarantine(node, "left Ray and did not come back")

    def _let_go(self, node: Node, member: Member | None, now: float) -> None:
        """A noticed node works until training has left it, or until it is taken."""
        has_left = member is None or not member.is_alive
        if has_left or now > self._deadlines.setdefault(node.instance, now + _NOTICE_S):
            self._quarantine(node, node.reason)

    def _notice(self, node: Node, reason: str, seconds: float) -> None:
        self._say(f"node {node.instance} leaves ({reason}); a replacement is bought")
        self._store.move(node.instance, states.NOTICED, reason)
        self._deadlines[node.instance] = time.monotonic() + seconds
        self._deadlines.pop("look", None)

    def _quarantine(self, node: Node, reason: str) -> None:
        self._say(f"node {node.instance} is given back: {reason}")
        self._store.move(node.instance, states.LEAVING, reason)
        self._membership.forget(node.instance)
        self._deadlines.pop(node.instance, None)

    def _renew(self, instance: str) -> None:
        """A node's secret is written anew in this round, with a new certificate; a host is sent it."""
        if self._hosts and self._hosts.has(instance):
            self._hosts.renew(instance)
        else:
            self._told.pop(instance, None)

    def _tell_nodes(self) -> None:
        """Gives each node its secret once its address is known; after a new head, all of them theirs anew."""
        nodes = [node for node in self._store.nodes(states.STARTING, states.ADMITTED) if node.address]
        for node in nodes:
            if self._told.get(node.instance) != node.address:
                # Each pair is measured once: by the one that starts later, or has the greater id.
                earlier = [n for n in nodes if n.state == states.ADMITTED or n.instance < node.instance]
                peers = [n.address for n in earlier if n.instance != node.instance]
                content = self._membership.secret(node.instance, node.address, peers)
                secret.publish(self._api, self._names, node.instance, content)
                self._told[node.instance] = node.address

    def _refuse_unfit_nodes(self) -> None:
        """Something other than a node is wrong when several in a row do not join: image, network, subnet."""
        unfit = 0
        for node in reversed(self._store.nodes(states.ADMITTED, states.NOTICED, states.ENDED)):
            if node.reason not in (NEVER_JOINED, _DID_NOT_JOIN):
                break
            unfit += 1
        if unfit >= _MOST_UNFIT:
            raise UserError(
                f"{unfit} nodes in a row were bought and did not join; see the console output of one in EC2: drivers, "
                "devices or the network are not as expected, so look at the machine image and the subnets"
            )

    def _keep_budget(self) -> None:
        if self._budget is None or self._store.cost(time.time()) < self._budget:
            return
        self._say(f"the budget of ${self._budget:,.2f} is spent: the run writes a checkpoint and stops")
        self._budget = None  # said once
        os.kill(os.getpid(), signal.SIGTERM)  # as when this machine goes away: see preemption.py
