"""What AWS's errors mean."""

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from finecut.launcher.providers.aws import errors
from finecut.launcher.providers.aws.errors import Kind


def error(code: str, message: str = "no.") -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "RunInstances")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("InsufficientInstanceCapacity", Kind.CAPACITY),
        ("Unsupported", Kind.CAPACITY),
        ("RequestLimitExceeded", Kind.THROTTLED),
        ("InternalError", Kind.LOST),
        ("IdempotentInstanceTerminated", Kind.TOKEN_SPENT),
        ("VcpuLimitExceeded", Kind.QUOTA),
        ("UnauthorizedOperation", Kind.AUTHORISATION),
        ("InvalidGroup.NotFound", Kind.GONE),
        ("NoSuchEntity", Kind.GONE),
        ("InvalidAMIID.NotFound", Kind.VALIDATION),
        ("InvalidParameterValue", Kind.VALIDATION),
    ],
)
def test_code_has_a_kind(code: str, kind: Kind) -> None:
    assert errors.classify(error(code)) == (kind, code)


def test_broken_connections_are_tried_again_and_missing_credentials_are_not() -> None:
    assert errors.classify(EndpointConnectionError(endpoint_url="x"))[0] is Kind.LOST
    assert errors.classify(NoCredentialsError())[0] is Kind.AUTHORISATION


def test_denial_names_the_action_that_is_missing() -> None:
    text = (
        "User: arn:aws:iam::1:user/me is not authorized to perform: iam:PassRole on resource: x. "
        "Encoded authorization failure message: abc"
    )
    message = str(errors.explain(error("UnauthorizedOperation", text), "ec2", "RunInstances"))
    assert "add iam:PassRole to the launcher's IAM policy" in message and "abc" not in message


def test_denial_without_an_action_names_the_call() -> None:
    message = str(errors.explain(error("AccessDenied", "no"), "sqs", "CreateQueue"))
    assert "add sqs:CreateQueue" in message
