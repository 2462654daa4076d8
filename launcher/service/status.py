"""From what can go wrong to what gRPC says: one table, and details that programs can read."""

import grpc

from finecut.launcher.security.access import AccessDeniedError
from finecut.launcher.service import details
from finecut.launcher.service.jobs import JobNotFoundError
from finecut.launcher.store.database import StoreUnavailableError
from finecut.launcher.store.records import FolderInUseError, QuotaError, RequestReusedError
from finecut.proto.config import ConfigError, UserError

_MESSAGE_BYTES = 2000  # it travels as a header; see details.py

_TABLE: dict[type[Exception], tuple[grpc.StatusCode, str]] = {
    UserError: (grpc.StatusCode.INVALID_ARGUMENT, ""),
    AccessDeniedError: (grpc.StatusCode.PERMISSION_DENIED, ""),
    JobNotFoundError: (grpc.StatusCode.NOT_FOUND, "there is no job {0}; list yours to see which there are"),
    RequestReusedError: (
        grpc.StatusCode.ALREADY_EXISTS,
        "request_id: belongs to a job with another config; send the same config again, or choose a new id",
    ),
    FolderInUseError: (
        grpc.StatusCode.FAILED_PRECONDITION,
        "config.name: an active job has a run of this name in the same storage.root; wait for it or rename this one",
    ),
    QuotaError: (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "you have as many active jobs as your quota allows; wait until one ends, or cancel one",
    ),
    StoreUnavailableError: (grpc.StatusCode.UNAVAILABLE, "the service's store does not answer; try again"),
    TimeoutError: (grpc.StatusCode.DEADLINE_EXCEEDED, "the service took too long; the same call may be made again"),
}


def of_error(error: Exception) -> tuple[grpc.StatusCode, str, bytes | None]:
    """Code, sentence, and details (a serialized google.rpc.Status) of an error.

    INTERNAL is for errors that nobody foresaw: they say nothing of themselves, because the text may hold a secret.
    """
    for kind, (code, sentence) in _TABLE.items():
        if isinstance(error, kind):
            text = sentence.format(*error.args) if sentence else str(error)
            packed = details.pack(code, error.problems) if isinstance(error, ConfigError) else None
            return code, _shortened(text), packed
    return grpc.StatusCode.INTERNAL, "the service failed; its log says why", None


def _shortened(text: str) -> str:
    """Headers are percent-encoded, three bytes for one outside of printable ASCII."""
    size = 0
    for position, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode("utf-8", "replace"))
        if size > _MESSAGE_BYTES:
            return text[:position] + "..."
    return text
