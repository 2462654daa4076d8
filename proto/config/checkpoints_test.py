"""Where checkpoints are kept, and whether what is said of their encryption means anything."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import ConfigError, resolve
from finecut.proto.run import RunFolder

JOB = (
    """name: "tiny" stages { name: "sft" sft { model { path: "model" } data: "data" training { max_steps: 1 %s } } }"""
)
IN_S3 = 'checkpointing { folder: "s3://bucket/runs/" }'
ENCRYPTION = ' storage { encryption { kms_key: "alias/runs" } }'


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for path in ("model/config.json", "data/manifest.json"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_text("{}")
    return tmp_path


def resolved(base: Path, text: str) -> job_pb2.JobConfig:
    return resolve(text_format.Parse(text, job_pb2.JobConfig()), base_dir=base)


@pytest.mark.parametrize(
    "training, expected",
    [
        ("", "{base}/finecut-runs/tiny/stages/sft/checkpoints"),
        (IN_S3, "s3://bucket/runs/tiny/sft"),
        ('checkpointing { folder: "fast" }', "{base}/fast/tiny/sft"),
    ],
)
def test_place_of_checkpoints(base, training, expected):
    job = resolved(base, JOB % training)
    assert RunFolder.of(job).checkpoint_place(job, "sft") == expected.format(base=base)


def test_encryption_is_for_checkpoints_in_s3(base):
    job = resolved(base, JOB % IN_S3 + ENCRYPTION)
    assert job.storage.encryption.bucket_key is True
    with pytest.raises(ConfigError, match=r"storage.encryption: says nothing while no stage keeps its checkpoints in"):
        resolved(base, JOB % "" + ENCRYPTION)
