"""Problems of a config beside the status of a call: google.rpc.BadRequest, as clients of many languages read it."""

from collections.abc import Iterable

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from finecut.proto.config import Problem

KEY = "grpc-status-details-bin"
# Status and details travel as headers, of which gRPC accepts 8 KiB; binary ones grow by a third there.
_MAX_BYTES = 3000
_MAX_CHARACTERS = 500


def pack(code: grpc.StatusCode, problems: Iterable[Problem]) -> bytes:
    """A serialized google.rpc.Status with as many problems as fit; ValidateJob tells all."""
    request = error_details_pb2.BadRequest()
    for problem in problems:
        request.field_violations.add(field=problem.path, description=problem.message[:_MAX_CHARACTERS])
        if request.ByteSize() > _MAX_BYTES:
            del request.field_violations[-1]
            break
    packed = any_pb2.Any()
    packed.Pack(request)
    return status_pb2.Status(code=code.value[0], details=[packed]).SerializeToString()


def unpack(serialized: bytes) -> list[Problem]:
    """The problems that `pack` was given."""
    request = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(serialized).details:
        if detail.Unpack(request):
            return [Problem(found.field, found.description) for found in request.field_violations]
    return []
