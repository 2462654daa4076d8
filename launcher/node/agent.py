"""The agent of a rented node: user data starts it, and it runs until the node ends.

    count devices -> wait for this node's secret -> measure the network -> join Ray -> notices, Xids, lease, new head

Usage: python -m finecut.launcher.node.agent --cluster=ID --region=REGION --gpus=N --cpus=N --dead_man_minutes=N

It takes the node's role from instance metadata and reads two parameters: the node's secret and the launcher's lease.
A node that fails its checks never joins; the launcher replaces it.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path

from absl import app, flags

from finecut.launcher.health import devices, metadata, xid
from finecut.launcher.node.dead_man import DeadMan
from finecut.launcher.node.ray_node import RayNode
from finecut.launcher.node.secret import NodeSecret
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError
from finecut.launcher.providers.aws.names import Names
from finecut.proto.run import ray_session

_CLUSTER = flags.DEFINE_string("cluster", None, "Id of the cluster.", required=True)
_REGION = flags.DEFINE_string("region", None, "AWS region.", required=True)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs that this machine must have.", lower_bound=0)
_EFA_CARDS = flags.DEFINE_integer("efa_cards", 0, "EFA interfaces that this machine must have.", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus", 1, "CPU cores to offer.", lower_bound=1)
_ROLE = flags.DEFINE_string("role", "", "What work this machine takes: train, rollout or data.")
_DEAD_MAN = flags.DEFINE_integer("dead_man_minutes", 20, "Minutes without a launcher until shutdown.", lower_bound=1)

_ROUND_S = 5.0
_LEASE_ROUNDS = 6
# Spot gives 120 s; what is left is for Ray to end.
_DRAIN_S = 110.0


class Unfit(Exception):  # noqa: N818 - a verdict
    """This machine must not join."""


class Agent:
    """This machine's part in a cluster."""

    def __init__(self, api: Api, names: Names, folder: Path) -> None:
        self._api = api
        self._names = names
        self._metadata = metadata.Metadata()
        self._instance = self._metadata.get("instance-id") or ""
        self._node = RayNode(self._instance, _CPUS.value, _GPUS.value, _ROLE.value, folder)
        self._dead_man = DeadMan(_DEAD_MAN.value)
        self._seen_xids = len(xid.find(devices.kernel_log()))
        self._drained = False

    def check(self) -> list[str]:
        """What is wrong with this machine."""
        complaint = devices.diagnose()
        return [*devices.missing(_GPUS.value, _EFA_CARDS.value), *([complaint] if complaint else [])]

    def round(self, number: int) -> None:
        """One look at everything. Raises Unfit where the network is not as expected."""
        if number % _LEASE_ROUNDS == 0 or not self._node.has_joined:
            self._dead_man.hear(self._read(self._names.lease))
            self._follow_head()
        if self._node.has_joined and not self._drained and (reason := self._reason_to_leave()):
            print(f"leaving: {reason}", flush=True)
            # The launcher sees that Ray drains this node, and buys another.
            self._drained = self._node.drain(reason, _DRAIN_S)

    def end(self, reason: str) -> None:
        """Ends this machine: what does not join must not be billed."""
        print(f"this machine does not join: {reason}", file=sys.stderr, flush=True)
        self._dead_man.end_now(reason)

    def _follow_head(self) -> None:
        """Joins the head that the secret names; again when it names another, or Ray ended here. Renews certificates."""
        text = self._read(self._names.node_secret(self._instance))
        if text is None:
            return
        secret = NodeSecret.parse(text)
        if self._node.is_member(secret):
            self._node.renew(secret)
            return
        if not self._node.has_joined and (problems := list(self._node.complaints(secret))):
            raise Unfit("; ".join(problems))
        print(f"joining {secret.head} as {secret.address}", flush=True)
        self._node.join(secret)

    def _reason_to_leave(self) -> str | None:
        if leaving := metadata.departure(self._metadata):
            return leaving.reason
        found = xid.find(devices.kernel_log())
        new, self._seen_xids = found[self._seen_xids :], len(found)
        return next((str(error) for error in new if error.condemns_node), None)

    def _read(self, name: str) -> str | None:
        try:
            return str(self._api.call("ssm", "GetParameter", Name=name, WithDecryption=True)["Parameter"]["Value"])
        except CloudError:  # not there yet, or AWS is away: the timer decides
            return None


def main(arguments: list[str]) -> None:
    """Checks, joins, watches."""
    del arguments
    agent = Agent(Api(_REGION.value), Names(_CLUSTER.value), ray_session.make_folder())
    if problems := agent.check():
        agent.end("; ".join(problems))
        sys.exit(1)
    for number in itertools.count():
        try:
            agent.round(number)
        except Unfit as error:
            agent.end(str(error))
            sys.exit(1)
        time.sleep(_ROUND_S)


if __name__ == "__main__":
    app.run(main)
