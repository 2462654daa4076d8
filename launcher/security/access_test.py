"""Which configs of a service are safe, and who a caller is."""

import pytest

from finecut.launcher.security import access
from finecut.launcher.security.access import AccessDeniedError, Directory, Principal
from finecut.proto import service_config_pb2, service_pb2
from finecut.proto.config import ConfigError, defaults

CERTIFICATES = {"certificates": "/c"}


def config(**fields: object) -> service_config_pb2.ServiceConfig:
    made = service_config_pb2.ServiceConfig(folder="/f", **fields)  # type: ignore[arg-type]
    defaults.fill(made)
    return made


def principal(name: str, **fields: object) -> service_config_pb2.Principal:
    return service_config_pb2.Principal(name=name, **fields)  # type: ignore[arg-type]


def test_every_method_of_the_service_has_roles() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["JobService"]
    assert set(access.ROLES) == {method.name for method in service.methods}


def test_certificate_names_lead_to_principals() -> None:
    listed = [principal("ann"), principal("ci", certificate_names=["ci-1", "ci-2"], role=service_config_pb2.VIEWER)]
    directory = access.directory_of(config(principals=listed, **CERTIFICATES))
    assert directory.identify({"x509_common_name": [b"ann"]}).role == service_config_pb2.SUBMITTER
    assert directory.identify({"x509_common_name": [b"ci-2"]}) == Principal("ci", service_config_pb2.VIEWER, 1000)
    for names in ([b"ci"], [b"\xff"], []):
        with pytest.raises(AccessDeniedError):
            directory.identify({"x509_common_name": names})


def test_method_that_nobody_knows_is_for_nobody() -> None:
    with pytest.raises(AccessDeniedError):
        access.authorise(Principal("ann", service_config_pb2.OPERATOR, 1), "DropAllJobs")


def test_single_user_is_everybody() -> None:
    assert access.directory_of(config(single_user="ann")).identify({}).name == "ann"
    assert Directory({}, Principal("ann", 3, 1)).identify({"x509_common_name": [b"bob"]}).name == "ann"


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "certificates"),
        ({"single_user": "ann", "listen": "0.0.0.0:7400"}, "listen"),
        ({"single_user": "ann", "listen": "[::]:7400"}, "listen"),
        ({"single_user": "ann", "listen": "jobs.example.org:7400"}, "listen"),
        ({"single_user": "ann", "principals": [principal("bob")]}, "principals"),
        ({"single_user": "ann", "principals": [principal("bob")], **CERTIFICATES}, "single_user"),
        (CERTIFICATES, "principals"),
        ({"principals": [principal("ann"), principal("ann")], **CERTIFICATES}, "principals[1].name"),
        (
            {"principals": [principal("ann"), principal("bob", certificate_names=["ann"])], **CERTIFICATES},
            "principals[1].certificate_names[0]",
        ),
    ],
)
def test_config_that_would_let_the_wrong_ones_in_is_refused(fields: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as raised:
        access.directory_of(config(**fields))
    assert path in {problem.path for problem in raised.value.problems}


@pytest.mark.parametrize(
    ("address", "expected"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("0.0.0.0:1", False), ("10.0.0.1:1", False)],
)
def test_loopback_is_told_from_the_rest(address: str, expected: bool) -> None:
    assert access.is_loopback(address) is expected
