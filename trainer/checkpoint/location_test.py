"""Folders and object stores keep checkpoints alike; objects are encrypted as the job says."""

from __future__ import annotations

import base64
import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from finecut.trainer.checkpoint import location
from finecut.trainer.keeping import EncryptionConfig

KEY = "arn:aws:kms:us-east-1:123456789012:key/8d6f2a3e-1111-2222-3333-444455556666"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """Address of an S3 server of its own, with the bucket "runs"; clients of this process find it."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        variables = {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        for name, value in variables.items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="runs")
        yield variables["AWS_ENDPOINT_URL"]
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty place of each kind."""
    name = uuid.uuid4().hex
    if request.param == "s3":
        request.getfixturevalue("endpoint")
        return f"s3://runs/{name}"
    return f"memory://{name}" if request.param == "memory" else str(tmp_path / name)


def write(where: location.Location, path: str, content: bytes = b"content") -> None:
    with where.create(path) as file:
        file.write(content[:3])
        file.write(content[3:])


def test_files_are_read_as_written_by_another_client(place):
    write(location.at(place), "step-1/tensors/a.bin", bytes(range(256)) * 100)
    location.at(place).write_last("step-1/manifest.json", "{}")
    there = location.at(place)
    assert there.folders() == ["step-1"]
    assert there.size("step-1/tensors/a.bin") == 25_600
    with there.open("step-1/tensors/a.bin") as file:
        file.seek(256)
        assert file.read(3) == b"\0\1\2"
    assert there.read_text("step-1/manifest.json") == "{}"


def test_what_is_missing_is_told(place):
    there = location.at(place)
    assert there.folders() == []
    assert there.size("step-1/a") is None
    with pytest.raises(FileNotFoundError):
        there.read_text("step-1/manifest.json")
    there.remove_file("step-1/a")
    there.remove_folder("step-1")


def test_removed_folder_takes_its_files_and_no_others(place):
    there = location.at(place)
    for path in ("step-1/a", "step-1/deep/b", "step-2/a"):
        write(there, path)
    there.remove_file("step-2/a")
    assert there.size("step-2/a") is None
    write(there, "step-2/a")
    there.remove_folder("step-1")
    assert there.folders() == ["step-2"]
    assert there.size("step-1/deep/b") is None and there.size("step-2/a") == 7


def test_objects_are_encrypted_with_the_key_of_the_job(endpoint):
    encryption = EncryptionConfig(KEY, (("run", "tiny"),), bucket_key=True)
    there = location.at("s3://runs/encrypted", encryption)
    write(there, "step-1/small")
    write(there, "step-1/large", b"x" * (60 << 20))  # in parts
    there.write_last("step-1/manifest.json", "{}")
    for path in ("small", "large", "manifest.json"):
        found = boto3.client("s3").head_object(Bucket="runs", Key=f"encrypted/step-1/{path}")
        assert (found["ServerSideEncryption"], found["SSEKMSKeyId"]) == ("aws:kms", KEY)
        assert path == "large" or found["BucketKeyEnabled"]  # moto forgets it for objects that come in parts


def test_encryption_context_is_json_in_base64():
    headers = location.encryption_headers(EncryptionConfig(KEY, (("run", "tiny"), ("team", "a")), bucket_key=False))
    assert json.loads(base64.b64decode(headers["SSEKMSEncryptionContext"])) == {"run": "tiny", "team": "a"}
    assert headers["BucketKeyEnabled"] is False
