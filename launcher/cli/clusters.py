"""A cluster's plan for people: machines, cost, the order of fallbacks, then whole requests and the policy."""

import json

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct
from rich.console import Console

from finecut.proto import plan_pb2


def show(plan: plan_pb2.MachinesPlan, console: Console) -> None:
    """Prints what would be bought. Nothing in it is secret."""
    console.print(f"cluster: {plan.description}", markup=False)
    if not plan.HasField("purchase"):
        return
    purchase = plan.purchase
    console.print("asked in this order, until one has room:")
    for number, line in enumerate(purchase.order, start=1):
        console.print(f"  {number}. {line}", markup=False)
    console.print("requests:")
    for request in purchase.requests:
        _show(request, console)
    console.print("what the nodes may do:")
    _show(purchase.policy, console)
    console.print("what the launcher's credentials need:")
    _show(purchase.launcher_policy, console)


def _show(document: Struct, console: Console) -> None:
    console.print_json(json.dumps(json_format.MessageToDict(document)), sort_keys=True, highlight=False)
