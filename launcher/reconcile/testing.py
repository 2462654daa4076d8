"""A cloud that is only remembered."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from finecut.launcher.reconcile.reconciler import Instance, NoCapacity


@dataclass
class FakeCloud:
    """Instances by id; tokens are honoured as EC2 honours them."""

    machines: dict[str, Instance] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    full: set[str] = field(default_factory=set)
    terminated: list[str] = field(default_factory=list)
    after_list: Any = None  # called once, between listing and answering
    is_down: bool = False

    def instances(self) -> list[Instance]:
        if self.is_down:
            raise OSError("the status API is down")
        found = [machine for machine in self.machines.values() if machine.id not in self.hidden]
        if self.after_list:
            self.after_list, hook = None, self.after_list
            hook()
        return found

    def requests(self, group: str, count: int, attempt: int) -> Iterator[tuple[str, dict[str, Any]]]:
        for zone in ("a", "b"):
            token = f"{group}-{zone}-{attempt}"
            yield token, {"token": token, "group": group, "zone": zone, "count": count}

    def launch(self, request: dict[str, Any]) -> list[Instance]:
        if request["zone"] in self.full:
            raise NoCapacity(f"zone {request['zone']}: full")
        mine = [machine for machine in self.machines.values() if machine.token == request["token"]]
        if not mine:
            mine = [
                Instance(f"i-{request['token']}-{n}", request["token"], request["group"], "10.0.0.1", "big", True, 0.0)
                for n in range(request["count"])
            ]
            self.machines |= {machine.id: machine for machine in mine}
        return mine

    def terminate(self, instances: list[str]) -> None:
        self.terminated += instances
        for name in instances:
            self.machines[name] = replace(self.machines[name], is_live=False)

    def usd_per_hour(self, instance_type: str) -> float:
        return 10.0

    @property
    def live(self) -> list[str]:
        return [machine.id for machine in self.machines.values() if machine.is_live]
