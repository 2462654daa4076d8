"""The agent of a rented node: user data starts it, and it runs until the node ends.

    count devices -> wait for this node's secret -> join Ray -> every few seconds: notices, Xids, lease, new head

Usage: python -m finecut.launcher.node.agent --cluster=ID --region=REGION --gpus=N --cpus=N --dead_man_minutes=N

It takes the node's role from instance metadata and reads two parameters: the node's secret and the launcher's lease.
A node that fails its checks never joins; the launcher replaces it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from finecut.launcher.health import devices, metadata, xid
from finecut.launcher.node import drain, ray_commands
from finecut.launcher.node.dead_man import DeadMan
from finecut.launcher.providers.aws.api import Api
from finecut.launcher.providers.aws.errors import CloudError
from finecut.launcher.providers.aws.names import Names
from finecut.launcher.providers.aws.secret import NodeSecret
from finecut.launcher.security.authority import Certificate, write_private
from finecut.proto.run import ray_session

_CLUSTER = flags.DEFINE_string("cluster", None, "Id of the cluster.", required=True)
_REGION = flags.DEFINE_string("region", None, "AWS region.", required=True)
_GPUS = flags.DEFINE_integer("gpus", 0, "GPUs that this machine must have.", lower_bound=0)
_EFA_CARDS = flags.DEFINE_integer("efa_cards", 0, "EFA interfaces that this machine must have.", lower_bound=0)
_CPUS = flags.DEFINE_integer("cpus", 1, "CPU cores to offer.", lower_bound=1)
_DEAD_MAN = flags.DEFINE_integer("dead_man_minutes", 20, "Minutes without a launcher until shutdown.", lower_bound=1)

_ROUND_S = 5.0
_LEASE_ROUNDS = 6
# Spot gives 120 s; what is left is for Ray to end.
_DRAIN_S = 110.0


class Agent:
    """This machine's part in a cluster."""

    def __init__(self, api: Api, names: Names, folder: Path) -> None:
        self._api = api
        self._names = names
        self._folder = folder
        self._metadata = metadata.Metadata()
        self._instance = self._metadata.get("instance-id") or ""
        self._dead_man = DeadMan(_DEAD_MAN.value)
        self._secret: NodeSecret | None = None
        self._ray: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._seen_xids = len(xid.find(devices.kernel_log()))
        self._drained = False

    def check(self) -> list[str]:
        """What is wrong with this machine."""
        complaint = devices.diagnose()
        return [*devices.missing(_GPUS.value, _EFA_CARDS.value), *([complaint] if complaint else [])]

    def round(self, number: int) -> None:
        """One look at everything."""
        if number % _LEASE_ROUNDS == 0 or self._ray is None:
            self._dead_man.hear(self._read(self._names.lease))
            self._follow_head()
        if self._ray is not None and not self._drained and (reason := self._reason_to_leave()):
            self._leave(reason)

    def _follow_head(self) -> None:
        """Joins the head that the secret names; joins again when it names another, or when Ray ended here."""
        text = self._read(self._names.node_secret(self._instance))
        if text is None:
            return
        secret = NodeSecret.parse(text)
        if secret == self._secret and self._ray is not None and self._ray.poll() is None:
            return
        self._end_ray()
        self._secret = secret
        token = self._folder / "token"
        write_private(token, secret.token.encode())
        tls = self._folder / "tls"
        Certificate(secret.certificate.encode(), secret.key.encode()).write(tls, secret.authority.encode())
        self._environment = (
            os.environ | ray_session.environment(token) | ray_commands.open_to_members(tls)
        )
        print(f"joining {secret.head} as {secret.address}", flush=True)
        self._ray = ray_commands.start_node(
            *(secret.head, secret.address, self._instance, _CPUS.value, _GPUS.value),
            folder=self._folder / "ray",
            environment=self._environment,
        )

    def _reason_to_leave(self) -> str | None:
        if leaving := metadata.departure(self._metadata):
            return leaving.reason
        found = xid.find(devices.kernel_log())
        new, self._seen_xids = found[self._seen_xids :], len(found)
        return next((str(error) for error in new if error.condemns_node), None)

    def _leave(self, reason: str) -> None:
        """Has Ray drain this node: training saves and goes, and the launcher sees it and buys another."""
        assert self._secret is not None
        print(f"leaving: {reason}", flush=True)
        self._drained = drain.drain(self._secret.head, self._instance, reason, _DRAIN_S, self._environment)

    def _end_ray(self) -> None:
        if self._ray is None:
            return
        self._ray.terminate()
        try:
            self._ray.wait(30)
        except subprocess.TimeoutExpired:
            self._ray.kill()
            self._ray.wait()
        self._ray = None

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
        print(f"this machine does not join: {'; '.join(problems)}", file=sys.stderr, flush=True)
        sys.exit(1)
    number = 0
    while True:
        agent.round(number)
        number += 1
        time.sleep(_ROUND_S)


if __name__ == "__main__":
    app.run(main)
