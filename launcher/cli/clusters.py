"""A cluster's plan for people: machines, cost, the order of fallbacks, then whole requests and the policy."""

import json

from rich.console import Console

from finecut.launcher.providers.provider import ClusterPlan


def show(plan: ClusterPlan, console: Console) -> None:
    """Prints what would be bought. Nothing in it is secret."""
    console.print(f"cluster: {plan}", markup=False)
    purchase = plan.purchase
    if purchase is None:
        return
    console.print("asked in this order, until one has room:")
    for number, line in enumerate(purchase.order, start=1):
        console.print(f"  {number}. {line}", markup=False)
    console.print("requests:")
    for request in purchase.requests:
        console.print_json(json.dumps(request), highlight=False)
    console.print("what the nodes may do:")
    console.print_json(json.dumps(purchase.policy), highlight=False)
    console.print("what the launcher's credentials need:")
    console.print_json(json.dumps(purchase.launcher_policy), highlight=False)
