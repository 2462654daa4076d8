"""10,000 damaged submissions: each is refused with field paths, or accepted; none is the service's fault."""

import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from finecut.launcher import testing
from finecut.launcher.security.access import Principal
from finecut.launcher.service import details, status
from finecut.launcher.service.jobs import Jobs
from finecut.launcher.service.servicer import Malformed, parse
from finecut.launcher.store.open import open_store
from finecut.proto import service_config_pb2, service_pb2
from finecut.proto.config import ConfigError, Problem, load_submission

PAYLOADS = 10_000
_MORE_STAGES = """
cluster {
  aws {
    region: "us-east-1"
    subnet_ids: "subnet-1"
    bundle: "s3://code/bundle.tar.gz"
    file_system { source: "files.example:/" folder: "FOLDER" }
  }
  node_groups { name: "train" node_count: 2 instance_types: "g5.xlarge" market: SPOT }
  max_cost_usd: 1000
}
stages {
  name: "pairs"
  data_prep { sources { paths: "FOLDER/chat.jsonl" preference {} } tokenization { tokenizer: "FOLDER/model" } }
}
stages {
  name: "prompts"
  data_prep {
    sources { paths: "FOLDER/chat.jsonl" prompt { reference_field: "answer" } }
    tokenization { tokenizer: "FOLDER/model" }
  }
}
stages { name: "dpo" dpo { model { path: "@sft" lora { rank: 4 } } data: "@pairs" training { max_steps: 3 } } }
stages { name: "reward" reward_model { model { path: "@sft" } data: "@pairs" } }
stages { name: "ppo" ppo { model { path: "@dpo" } data: "@prompts" rewards { model: "@reward" } } }
stages { name: "grpo" grpo { model { path: "@sft" } data: "@prompts" rewards { exact_match {} } } }
stages { name: "small" distill { model { path: "FOLDER/model" } teacher: "@sft" data: "@prepare" } }
stages {
  name: "test"
  evaluate { model: "@grpo" tasks { name: "a" data: "@prepare" split: "train" perplexity {} } gates: "a.loss < 9" }
}
stages { name: "serve" deploy { model: "@export" } }
"""
_TEXTS = ("", "\0", "@", "@nobody", "@sft", "/", "/*", "..", "//a:b", "s3://", "http://[", "é" * 300, "x" * 5000, "[")
_NUMBERS = (0, 1, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63), 7)
_REALS = (0.0, -1.0, float("nan"), float("inf"), -float("inf"), 1e308, 5e-324)


def caller(folder: Path) -> Principal:
    """Patterns such as "/**" would have validation walk the machine, which a principal's folders forbid."""
    return Principal("ann", service_config_pb2.SUBMITTER, 10**9, (str(folder),))


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    store = open_store(f"sqlite:///{tmp_path}/jobs.sqlite")
    yield Jobs(store, tmp_path / "runs", lambda job_id: None)
    store.close()


def test_damaged_submissions_are_the_callers_fault(tmp_path: Path, jobs: Jobs) -> None:
    short = load_submission(testing.write_job(tmp_path))
    long = load_submission(testing.write_job(tmp_path, stages=testing.STAGES + _MORE_STAGES))
    chance = random.Random(20261122)
    refused = 0
    for number in range(PAYLOADS):
        request = service_pb2.SubmitJobRequest(request_id=f"r{number}", config=short if number % 4 else long)
        request.config.name = f"job-{number}"
        for _ in range(chance.randint(1, 3)):
            mutate(request, chance)
        data = request.SerializeToString()
        if data and chance.random() < 0.3:
            data = damage(data, chance)
        problems = submit(jobs, caller(tmp_path), data, number)
        refused += problems is not None
    assert refused > PAYLOADS / 2, "the mutations change too little"


def submit(jobs: Jobs, principal: Principal, data: bytes, number: int) -> list[Problem] | None:
    """The problems that a caller is told; None where the job is accepted. Anything but INVALID_ARGUMENT fails."""
    request = parse(service_pb2.SubmitJobRequest, data)
    if isinstance(request, Malformed):
        return []
    try:
        jobs.submit(principal, request)
        return None
    except Exception as error:
        code, sentence, packed = status.of_error(error)
        allowed = (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.ALREADY_EXISTS,
            grpc.StatusCode.FAILED_PRECONDITION,
        )
        assert code in allowed, f"payload {number}: {data.hex()}"
        if code is not grpc.StatusCode.INVALID_ARGUMENT:
            return []  # the damage made another payload's request id or run folder of it
        assert isinstance(error, ConfigError) and packed and sentence
        problems = details.unpack(packed)
        assert problems and all(problem.message for problem in problems)
        paths = [problem.path for problem in problems if problem.path]
        assert all(path.startswith(("config", "request_id")) for path in paths), paths
        return problems


def mutate(message: Message, chance: random.Random) -> None:
    """Changes one field somewhere below a message."""
    field = chance.choice(message.DESCRIPTOR.fields)
    if field.message_type and field.message_type.GetOptions().map_entry:
        getattr(message, field.name)[chance.choice(_TEXTS)] = chance.choice(_TEXTS)
    elif field.is_repeated:
        items = getattr(message, field.name)
        if items and field.message_type and chance.random() < 0.8:
            mutate(chance.choice(items), chance)
        elif field.message_type:
            mutate(items.add(), chance)
        elif items and chance.random() < 0.5:
            del items[0]
        else:
            items.append(value(field, chance))
    elif field.message_type:
        if chance.random() < 0.1:
            message.ClearField(field.name)
        elif field.message_type.fields:
            mutate(getattr(message, field.name), chance)
    elif chance.random() < 0.2:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, value(field, chance))


def value(field: FieldDescriptor, chance: random.Random) -> object:
    """A value of the field's type that somebody might send."""
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return chance.choice(_TEXTS)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return chance.random() < 0.5
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return chance.choice((0, 1, 2, 99, -1))
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return chance.choice(_REALS)
    low, high = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
        FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }.get(kind, (-(2**63), 2**63 - 1))
    return min(max(chance.choice(_NUMBERS), low), high)


def damage(data: bytes, chance: random.Random) -> bytes:
    """Flips, cuts out or doubles some bytes."""
    place, length = chance.randrange(len(data)), chance.randint(1, 8)
    match chance.randrange(3):
        case 0:
            return data[:place] + bytes(chance.randrange(256) for _ in range(length)) + data[place + length :]
        case 1:
            return data[:place] + data[place + length :]
        case _:
            return data[:place] + data[place : place + length] * 2 + data[place + length :]
