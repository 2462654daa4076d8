"""EC2 nodes under a Ray head that runs beside the launcher.

    plan      whole requests, policy and cost; nothing is touched
    apply     look up and pin -> what the cluster needs in the account -> gangs -> head -> nodes join -> monitor
    release   monitor stops -> head stops -> nodes end -> what was made in the account is removed

Whatever ends the launcher, the next `apply` goes on from the store, and nodes that live are adopted. The launcher's
machine must be reachable from the nodes: it is in their VPC, and admits their security group.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from finecut.launcher.providers.aws import account, planning, removal, sizing
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.ec2 import Ec2
from finecut.launcher.providers.aws.instance_types import BY_NAME
from finecut.launcher.providers.aws.monitor import Monitor
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.requests import Facts
from finecut.launcher.providers.hosts import Hosts
from finecut.launcher.providers.membership import Membership
from finecut.launcher.providers.provider import ClusterPlan, Observation, Phase, tell
from finecut.launcher.reconcile import store as states
from finecut.launcher.reconcile.reconciler import Reconciler
from finecut.launcher.reconcile.store import Store
from finecut.proto import job_pb2
from finecut.proto.config import UserError
from finecut.proto.run import RunFolder, node_roles

_ACTIVE, _RELEASING, _RELEASED = "active", "releasing", "released"
_POLL_S = 2.0
# Instances take minutes to end, and interfaces a moment longer; then somebody should look.
_RELEASE_DEADLINE_S = 900.0


class AwsProvider:
    """One run's cluster.

    Args:
      job: Resolved; its cluster is AWS's.
      folder: The run; the store is in it.
      api: The door to AWS; made from the environment's credentials where it is not given.
      say: Tells the user what happens.
    """

    def __init__(
        self,
        job: job_pb2.JobConfig,
        folder: RunFolder,
        api: Api | None = None,
        store: Store | None = None,
        say: Callable[[str], None] = tell,
    ) -> None:
        self._job = job
        self._folder = folder
        self._api = api or Api(job.cluster.aws.region)
        self._given_store = store
        self._say = say
        self._membership = Membership(folder, job.cluster.aws.launcher_address, job.cluster)
        self._monitor: Monitor | None = None
        self._hosts: Hosts | None = None
        self._has_taken_over = False

    def plan(self, job: job_pb2.JobConfig) -> ClusterPlan:
        return planning.plan(job)

    def apply(self, plan: ClusterPlan) -> None:
        if self._monitor is not None:
            return
        store = self._store()
        names = Names(store.cluster(self._job.name))
        reconciler = self.provision()
        self._membership.start_head(plan.object_store_bytes)
        self._join_hosts(store)
        monitor = Monitor(self._job, names, self._api, store, reconciler, self._membership, self._say, self._hosts)
        monitor.wait_for_nodes()
        monitor.start()
        self._monitor = monitor

    def _join_hosts(self, store: Store) -> None:
        """Hosts that cost nothing come while the nodes that do boot."""
        static = self._job.cluster.aws.hosts
        if static.hosts and self._hosts is None:
            self._hosts = Hosts(static, self._membership, store, self._say, role=node_roles.TRAIN)
            self._hosts.join()

    def provision(self) -> Reconciler:
        """The part of `apply` that buys: afterwards every group has its nodes, booting or at work.

        Raises:
          UserError: What AWS refuses, in words; no capacity within capacity_wait.
        """
        store = self._store()
        self._take_over(store)
        cluster = self._job.cluster
        if cluster.HasField("max_cost_usd") and store.cost(time.time()) >= cluster.max_cost_usd:
            raise UserError(
                f"cluster.max_cost_usd: the budget of ${cluster.max_cost_usd:,.2f} is spent; resume with a larger one"
            )
        if store.fact("phase") == _RELEASING:  # an earlier launcher was killed in it
            self.release()
        store.remember("phase", _ACTIVE)
        reconciler = self._reconciler(self._facts(store))
        wait_s = self._job.cluster.aws.capacity_wait.ToTimedelta().total_seconds()
        deadline = time.monotonic() + wait_s
        while short := reconciler.converge():
            if time.monotonic() >= deadline:
                raise UserError(
                    f"cluster.node_groups: {'; '.join(short)}; add instance types or subnets, or set "
                    "cluster.aws.capacity_wait to go on asking"
                )
            time.sleep(min(30.0, max(_POLL_S, wait_s / 20)))
        return reconciler

    def observe(self) -> Observation:
        store = self._store()
        nodes = store.nodes(states.STARTING, states.ADMITTED, states.NOTICED)
        spent = store.cost(time.time())
        if not nodes:
            return Observation(Phase.ABSENT, cost_usd=spent)
        admitted = [node for node in nodes if node.state != states.STARTING]
        kinds = [BY_NAME[node.instance_type] for node in admitted]
        hosts = self._job.cluster.aws.hosts.hosts if self._hosts else []
        alive = self._hosts.num_alive if self._hosts else 0
        return Observation(
            Phase.READY if len(admitted) == len(nodes) and alive == len(hosts) else Phase.STARTING,
            cpu_count=sum(kind.cpu_count for kind in kinds) + sum(host.cpu_count for host in hosts),
            gpu_count=sum(kind.gpu_count for kind in kinds) + sum(host.gpu_count for host in hosts),
            node_count=len(admitted) + alive,
            cost_usd=spent,
        )

    def release(self) -> None:
        store = self._store()
        if store.fact("phase") in (None, _RELEASED):
            return
        self._take_over(store)
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None
        if self._hosts is not None:
            self._hosts.leave()
            self._hosts = None
        self._membership.stop()
        store.remember("phase", _RELEASING)
        names = Names(store.cluster(self._job.name))
        reconciler = self._reconciler(Facts("", (), ""))
        _repeat(reconciler.release, "instances are still ending")
        _repeat(
            lambda: removal.remove_all(self._api, names, self._job.cluster.aws), "the security group is still in use"
        )
        store.remember("pinned", "")
        store.remember("phase", _RELEASED)

    def _take_over(self, store: Store) -> None:
        """Once: a launcher that has been superseded must not come back."""
        if not self._has_taken_over:
            store.take_over()
            self._has_taken_over = True

    def _reconciler(self, facts: Facts) -> Reconciler:
        store = self._store()
        cluster = self._job.cluster
        cloud = Ec2(self._api, cluster, Names(store.cluster(self._job.name)), facts)
        return Reconciler(store, cloud, sizing.first_counts(self._job), self._say)

    def _facts(self, store: Store) -> Facts:
        """Looks up what requests need and makes what they name. The image is pinned by the first look."""
        api, aws = self._api, self._job.cluster.aws
        names = Names(store.cluster(self._job.name))
        image = store.fact("pinned")
        network = account.check_offerings(api, self._job.cluster)
        if not image:
            image = account.find_image(api, aws)
            store.remember("pinned", image)
        groups = tuple(aws.security_group_ids) or (account.ensure_security_group(api, names, network),)
        number = account.account_number(api)
        profile = aws.instance_profile or account.ensure_profile(api, names, self._job, number)
        store.remember("queue", account.ensure_notices(api, names))
        return Facts(image, groups, profile)

    def _store(self) -> Store:
        """Opened when it is needed first: `plan` touches nothing."""
        if self._given_store is None:
            self._given_store = Store(self._folder.root / states.FILE)
        return self._given_store


def _repeat(step: Callable[[], bool], why: str) -> None:
    deadline = time.monotonic() + _RELEASE_DEADLINE_S
    while not step():
        if time.monotonic() > deadline:
            raise UserError(f"the cluster could not be released: {why}; look at it in the EC2 console and resume")
        time.sleep(_POLL_S)
