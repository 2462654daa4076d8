"""Files behind URLs, on fsspec's store in memory and on a server that speaks S3."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import boto3
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from finecut.dataprep import readers, storage
from finecut.dataprep.config import SourceConfig
from finecut.proto.config import UserError

LINE = b'{"messages": 1}\n'


@pytest.fixture
def memory() -> Iterator[str]:
    filesystem = fsspec.filesystem("memory")
    yield "memory://bucket"
    filesystem.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="chats")
        yield "s3://chats"
        s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def put(url: str, content: bytes) -> None:
    with fsspec.open(url, "wb") as file:
        file.write(content)


def places(*paths: str) -> list[str]:
    source = SourceConfig("chats", paths)
    return [record.place for path in readers.files_of(source) for record in readers.read(source, path)]


@pytest.mark.parametrize("store", ["memory", "bucket"])
def test_remote_files_are_found_and_read(store: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = request.getfixturevalue(store)
    put(f"{root}/b.jsonl", LINE * 2)
    put(f"{root}/sub/a.jsonl.gz", gzip.compress(LINE))
    pq.write_table(pa.table({"messages": [1]}), tmp_path / "c.parquet")
    put(f"{root}/c.parquet", (tmp_path / "c.parquet").read_bytes())
    found = places(f"{root}/c.parquet", f"{root}/**/*.jsonl.gz", f"{root}/*.jsonl")
    ends = [place.partition("/bucket/" if store == "memory" else "s3://chats/")[2] for place in found]
    assert ends == ["c.parquet: row 1", "sub/a.jsonl.gz:1", "b.jsonl:1", "b.jsonl:2"]
    assert storage.read_text(f"{root}/b.jsonl") == (LINE * 2).decode()


def test_the_fingerprint_of_an_object_changes_with_its_content(bucket: str) -> None:
    prints = []
    for content in (LINE, LINE * 2, LINE):
        put(f"{bucket}/f.jsonl", content)
        (path,) = storage.expand(f"{bucket}/f.jsonl")
        prints.append(storage.fingerprint(path))
    assert prints[0] == prints[2] != prints[1]


def test_a_remote_dataset_folder_is_read(memory: str) -> None:
    table = pa.table({"messages": [1, 2]})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    put(f"{memory}/set/data-00000-of-00001.arrow", sink.getvalue().to_pybytes())
    put(f"{memory}/set/state.json", b'{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    source = SourceConfig("chats", (f"{memory}/set",), "HF_DATASET")
    (path,) = readers.files_of(source)
    assert [record.content for record in readers.read(source, path)] == [{"messages": 1}, {"messages": 2}]


def test_all_that_is_wrong_with_urls_is_said_at_once(memory: str, bucket: str) -> None:
    put(f"{memory}/a.txt", LINE)
    with pytest.raises(UserError) as caught:
        places(
            f"{memory}/gone.jsonl",
            f"{bucket}/*.gone",
            "s3://no-such-bucket/a.jsonl",
            "gopher://x/a.jsonl",
            f"{memory}/a.txt",
        )
    text = str(caught.value)
    lines = text.splitlines()
    assert len(lines) == 5
    assert "there is no such file: memory://bucket/gone.jsonl" in lines[0] and "no file matches" in lines[1]
    assert "s3://no-such-bucket/a.jsonl" in lines[2]
    assert "cannot look for gopher://x/a.jsonl: Protocol not known: gopher" in lines[3]
    assert "a.txt does not end in .jsonl" in lines[4]


def test_a_store_that_cannot_be_reached_is_a_plain_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=r"cannot look for s3://chats/a.jsonl: .*127.0.0.1:9"):
        places("s3://chats/a.jsonl")
