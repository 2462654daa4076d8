"""A tiny SFT job on two EC2 nodes, with what it trains."""

import sys
from pathlib import Path

from finecut.tests.aws import testing
from finecut.tests.aws.testing import Account
from finecut.trainer.recipes.testing import write_tiny_inputs

_JOB = """
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
    launcher_address: "{address}"
  }}
  node_groups {{ name: "train" node_count: 2 instance_types: "g5.xlarge" market: SPOT }}
}}
stages {{
  name: "sft"
  sft {{
    model {{ path: "{folder}/model" }}
    data: "{folder}/data"
    training {{
      max_steps: {steps}
      batch {{ global_blocks: 4 }}
      checkpointing {{ every_steps: 1000 }}
    }}
  }}
}}
"""


def write_sft_job(folder: Path, account: Account, steps: int, address: str) -> Path:
    """Writes the job file to `folder`, with data and model; its launcher is at `address`."""
    write_tiny_inputs(folder)
    path = folder / "job.textproto"
    path.write_text(
        _JOB.format(
            folder=folder,
            subnet=account.subnets[0],
            parameter=testing.OWN_PARAMETER,
            python=sys.executable,
            steps=steps,
            address=address,
        )
    )
    return path
