"""What an error of AWS means for the next step: elsewhere, again, with another token, or not at all."""

from __future__ import annotations

import re
from enum import Enum

from botocore.exceptions import ClientError

from finecut.proto.config import UserError


class Kind(Enum):
    """CAPACITY: ask another zone or type. THROTTLED, LOST: the same request again. TOKEN_SPENT: with a new token.
    GONE: what was named is not there. Others: nothing that a launcher can mend."""

    CAPACITY = "capacity"
    THROTTLED = "throttled"
    LOST = "lost"
    TOKEN_SPENT = "token spent"
    GONE = "gone"
    IN_USE = "in use"
    EXISTS = "exists"
    QUOTA = "quota"
    AUTHORISATION = "authorisation"
    VALIDATION = "validation"


_CODES = {
    Kind.CAPACITY: """InsufficientInstanceCapacity InsufficientHostCapacity InsufficientReservedInstanceCapacity
        InsufficientCapacity InsufficientCapacityOnHost InsufficientFreeAddressesInSubnet SpotMaxPriceTooLow
        ReservationCapacityExceeded UnfulfillableCapacity Unsupported""",
    Kind.THROTTLED: """RequestLimitExceeded Throttling ThrottlingException ThrottledException TooManyRequestsException
        RequestThrottled EC2ThrottledException SlowDown PriorRequestNotComplete""",
    Kind.LOST: "ServiceUnavailable Unavailable InternalError InternalFailure InternalServerError RequestTimeout",
    Kind.TOKEN_SPENT: "IdempotentInstanceTerminated IdempotentParameterMismatch",
    Kind.IN_USE: "DependencyViolation InvalidPlacementGroup.InUse DeleteConflict InvalidGroup.InUse",
    Kind.EXISTS: """EntityAlreadyExists InvalidGroup.Duplicate InvalidPlacementGroup.Duplicate ParameterAlreadyExists
        InvalidPermission.Duplicate InvalidLaunchTemplateName.AlreadyExistsException
        QueueAlreadyExists QueueNameExists""",
    Kind.QUOTA: """VcpuLimitExceeded InstanceLimitExceeded MaxSpotInstanceCountExceeded LimitExceeded
        LimitExceededException ResourceLimitExceeded VolumeLimitExceeded NetworkInterfaceLimitExceeded
        SecurityGroupLimitExceeded PlacementGroupLimitExceeded ParameterLimitExceeded""",
    Kind.AUTHORISATION: """UnauthorizedOperation AccessDenied AccessDeniedException AuthFailure OptInRequired
        InvalidClientTokenId ExpiredToken RequestExpired SignatureDoesNotMatch UnrecognizedClientException""",
}
_KINDS = {code: kind for kind, codes in _CODES.items() for code in codes.split()}
# A machine image that is gone is a mistake in the job, not a thing that is already released.
_NOT_GONE = ("InvalidAMIID.NotFound", "InvalidSubnetID.NotFound")
_ACTION = re.compile(r"perform:? ([a-z0-9-]+:\w+)")


class CloudError(UserError):
    """A call failed for good, or as often as it may. The message is for the user."""

    def __init__(self, kind: Kind, code: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.code = code


def classify(error: Exception) -> tuple[Kind, str]:
    """The kind and AWS's own code."""
    if not isinstance(error, ClientError):
        # No credentials or no region cannot be retried away; what broke on the way can.
        named = type(error).__name__
        lost = ("Endpoint", "Connect", "Read", "HTTP", "Proxy", "SSL", "ResponseParser", "Incomplete")
        return (Kind.LOST if named.startswith(lost) else Kind.AUTHORISATION), named
    code = str(error.response.get("Error", {}).get("Code", ""))
    return kind_of(code), code


def kind_of(code: str) -> Kind:
    """The kind of one of AWS's codes."""
    if code in _KINDS:
        return _KINDS[code]
    if code not in _NOT_GONE and re.search(r"NotFound|NoSuchEntity|NonExistentQueue|Unknown$|DoesNotExist", code):
        return Kind.GONE
    return Kind.VALIDATION


def explain(error: Exception, service: str, operation: str) -> CloudError:
    """The sentence for the user."""
    kind, code = classify(error)
    text = error.response.get("Error", {}).get("Message", "") if isinstance(error, ClientError) else str(error)
    text = text.split(" Encoded authorization failure message")[0].strip().rstrip(".")
    call = f"{service}:{operation}"
    match kind:
        case Kind.AUTHORISATION if code in ("UnauthorizedOperation", "AccessDenied", "AccessDeniedException"):
            found = _ACTION.search(text)
            action = found[1] if found else call
            message = f"these credentials may not do {action} ({text}); add {action} to the launcher's IAM policy"
        case Kind.AUTHORISATION:
            message = f"{call} was refused ({code}: {text}); check the launcher's AWS credentials"
        case Kind.QUOTA:
            message = (
                f"{call} is over a quota of the account ({code}: {text}); ask for a higher one, or for fewer nodes"
            )
        case Kind.THROTTLED | Kind.LOST:
            message = f"{call} did not succeed within the tries it has ({code}: {text}); start again later"
        case _ if code.startswith("InvalidAMIID"):
            message = f"the machine image is gone ({text}); name another with cluster.aws.ami_parameter and a new run"
        case _ if code.startswith("InvalidSubnet"):
            message = f"cluster.aws.subnet_ids: {text}; name subnets of the region that cluster.aws.region names"
        case _:
            message = f"{call} failed ({code}: {text})"
    return CloudError(kind, code, message)
