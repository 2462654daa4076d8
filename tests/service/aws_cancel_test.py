"""A job on EC2 nodes that is cancelled through the service while it trains: nothing runs, nothing is billed."""

from pathlib import Path

from finecut.proto import service_pb2
from finecut.proto.config import load_submission
from finecut.tests.aws import machines, testing
from finecut.tests.aws.sft_job import write_sft_job
from finecut.tests.service.real_service import running, until


def test_cancel_in_the_middle_leaves_no_instance_and_no_process(tmp_path: Path) -> None:
    with testing.account() as account, machines.running(account, tmp_path / "machines") as nodes:
        file = write_sft_job(tmp_path, account, steps=1_000_000, address="127.0.0.40")
        with running(tmp_path, **testing.variables(account)) as service, service.client() as client:
            made = client.submit(load_submission(file))

            def trains() -> bool:
                job = client.get(made.id)
                assert job.state in (service_pb2.PENDING, service_pb2.RUNNING), job.error
                return job.stages[0].step > 2

            until(trains, "training did not begin")
            until(lambda: client.get(made.id).cost_usd > 0, "it costs nothing")
            shown = client.get(made.id).nodes
            assert {node.id for node in shown} == set(nodes.machines) and len(shown) == 2
            assert {(node.instance_type, node.market, node.state) for node in shown} == {
                ("g5.xlarge", "SPOT", "admitted")
            }
            assert all(node.zone.startswith("us-east-1") for node in shown)

            client.cancel(made.id)
            done = client.wait(made.id)
            assert done.state == service_pb2.CANCELLED, done.error
            assert account.leftovers() == [] and not service.launchers()
            assert {node.state for node in done.nodes} == {"ended"}
            until(lambda: not nodes.machines, "a machine is still there")
