"""A job that is large on paper: for tests of plans."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from finecut.launcher import testing
from finecut.proto import job_pb2
from finecut.proto.config import load_job

LLAMA3_8B = {
    "model_type": "llama",
    "vocab_size": 128_256,
    "hidden_size": 4_096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8_192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500_000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
PREPARE = """
stages {
  name: "prepare"
  data_prep {
    sources { paths: "FOLDER/chat.jsonl" }
    tokenization { tokenizer: "FOLDER/model" }
    packing { block_size: 8192 }
  }
}
"""
SFT = 'stages {{ name: "sft" sft {{ model {{ path: "FOLDER/model" {} }} data: "@prepare" training {{ {} }} }} }}'


def write_job(
    folder: Path,
    model: str = "",
    training: str = "max_steps: 100",
    more: str = "",
    cluster: str = "",
    config: Mapping[str, object] = MappingProxyType({}),
) -> Path:
    """Writes a job that prepares blocks of 8,192 tokens and fine-tunes Llama-3-8B, of which only config.json is here.

    The arguments are text format: of the model, of its training, of more stages, of the job; and fields of config.json.
    """
    path = testing.write_job(folder, stages=PREPARE + SFT.format(model, training) + more + cluster)
    (folder / "model" / "config.json").write_text(json.dumps(LLAMA3_8B | dict(config)))
    return path


def job_of(folder: Path, **fields: Any) -> job_pb2.JobConfig:
    """The same, resolved."""
    return load_job(write_job(folder, **fields))


AWS = """
cluster {
  aws {
    region: "us-east-1" subnet_ids: "subnet-a" bundle: "s3://code/bundle.tar.gz"
    file_system { source: "fs-1.efs.us-east-1.amazonaws.com:/" folder: "FOLDER" }
    FIELDS
  }
  node_groups { name: "train" TYPES }
}
"""


def on_aws(types: str, fields: str = "") -> str:
    """The cluster of a job for `job_of`: fields of its group, and of `aws`."""
    return AWS.replace("TYPES", types).replace("FIELDS", fields)
