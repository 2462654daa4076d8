"""A job on EC2 nodes that is cancelled through the service while it trains: nothing runs, nothing is billed."""

import sys
from pathlib import Path

from finecut.proto import service_pb2
from finecut.proto.config import load_submission
from finecut.tests.aws import machines, testing
from finecut.tests.service.real_service import running, until
from finecut.trainer.recipes.testing import write_tiny_inputs

JOB = """
name: "tiny"
storage {{ root: "{folder}/runs" }}
cluster {{
  aws {{
    region: "us-east-1"
    subnet_ids: "{subnet}"
    ami_parameter: "{parameter}"
    bundle: "s3://code/bundle.tar.gz"
    file_system {{ source: "files.example:/" folder: "{folder}" }}
    python: "{python}"
    launcher_address: "127.0.0.40"
  }}
  node_groups {{ name: "train" node_count: 2 instance_types: "g5.xlarge" market: SPOT }}
}}
stages {{
  name: "sft"
  sft {{
    model {{ path: "{folder}/model" }}
    data: "{folder}/data"
    training {{ max_steps: 1000000 batch {{ global_blocks: 4 }} }}
  }}
}}
"""


def test_cancel_in_the_middle_leaves_no_instance_and_no_process(tmp_path: Path) -> None:
    write_tiny_inputs(tmp_path)
    with testing.account() as account, machines.running(account, tmp_path / "machines") as nodes:
        file = tmp_path / "job.textproto"
        places = {"folder": tmp_path, "subnet": account.subnets[0], "parameter": testing.OWN_PARAMETER}
        file.write_text(JOB.format(python=sys.executable, **places))
        variables = {
            "AWS_ENDPOINT_URL": account.url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_EC2_METADATA_DISABLED": "true",
            "OMP_NUM_THREADS": "1",
        }
        with running(tmp_path, **variables) as service, service.client() as client:
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
