"""What the nodes' role may do: read the bundle and the data, write the run's checkpoints, use the key, read secrets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from finecut.launcher.providers.aws import container
from finecut.launcher.providers.aws.names import Names
from finecut.proto import job_pb2, rules_pb2
from finecut.proto.config.walk import visit
from finecut.proto.run import RunFolder

Json = dict[str, Any]

TRUST: Json = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}],
}


def of_nodes(job: job_pb2.JobConfig, names: Names, account: str) -> Json:
    """The inline policy of the role that the nodes take. `account`: its number."""
    aws = job.cluster.aws
    statements = [
        *_objects("Read", ["s3:GetObject"], [_without_globs(place) for place in _read_places(job)]),
        *_objects("Write", ["s3:GetObject", "s3:PutObject", "s3:DeleteObject"], _written_places(job)),
        {
            "Sid": "OwnSecrets",
            "Effect": "Allow",
            "Action": ["ssm:GetParameter"],
            "Resource": [f"arn:aws:ssm:{aws.region}:{account}:parameter{names.parameters}/*"],
        },
    ]
    if own := container.repository(aws.container_image):
        statements += _image(*own)
    if job.storage.HasField("encryption"):
        statements.append(_key(job.storage.encryption.kms_key, aws.region, account))
    return {"Version": "2012-10-17", "Statement": statements}


def _read_places(job: job_pb2.JobConfig) -> list[str]:
    files = (found.value for found in visit(job) if found.rule.reference == rules_pb2.REFERENCE_FILES)
    return sorted({job.cluster.aws.bundle, *(place for place in files if place.startswith("s3://"))})


def _written_places(job: job_pb2.JobConfig) -> list[str]:
    run = RunFolder.of(job)
    stages = [stage.name for stage in job.stages if hasattr(getattr(stage, stage.WhichOneof("work") or ""), "training")]
    places = (run.checkpoint_place(job, stage) for stage in stages)
    return sorted({f"{place}/*" for place in places if place.startswith("s3://")})


def _objects(sid: str, actions: list[str], places: Iterable[str]) -> Iterator[Json]:
    places = list(places)
    if not places:
        return
    names = [place.removeprefix("s3://") for place in places]
    resources = [f"arn:aws:s3:::{name}" for name in names]
    yield {"Sid": f"{sid}Objects", "Effect": "Allow", "Action": actions, "Resource": resources}
    listed = sorted({name.partition("/")[0] for name in names})
    # A list is asked for by what comes before the first wildcard, with the slash at its end or without.
    prefixes = sorted({re.split(r"[*?]", name.partition("/")[2])[0].rstrip("/") + "*" for name in names})
    yield {
        "Sid": f"{sid}List",
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": [f"arn:aws:s3:::{bucket}" for bucket in listed],
        "Condition": {"StringLike": {"s3:prefix": prefixes}},
    }


def _without_globs(place: str) -> str:
    """IAM knows * and ? too; a glob with brackets is cut before them, which is as narrow as IAM can say."""
    return place.replace("**/", "*") if "[" not in place else place.partition("[")[0] + "*"


def _image(account: str, region: str, name: str) -> Iterator[Json]:
    """What `docker pull` needs. A token for the registry cannot be had for one repository alone."""
    yield {"Sid": "Registry", "Effect": "Allow", "Action": ["ecr:GetAuthorizationToken"], "Resource": ["*"]}
    yield {
        "Sid": "Image",
        "Effect": "Allow",
        "Action": ["ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"],
        "Resource": [f"arn:aws:ecr:{region}:{account}:repository/{name}"],
    }


def _key(key: str, region: str, account: str) -> Json:
    resource = key if key.startswith("arn:") else f"arn:aws:kms:{region}:{account}:key/{key}"
    actions = ["kms:Decrypt", "kms:GenerateDataKey"]
    return {"Sid": "Key", "Effect": "Allow", "Action": actions, "Resource": [resource]}
