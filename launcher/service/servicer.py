"""JobService over gRPC: identity, deadline, status, metrics and log of each call. What is done stands in jobs.py."""

import asyncio
import functools
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from finecut.launcher.security.access import Directory, Principal, authorise
from finecut.launcher.service import details, status
from finecut.launcher.service.hub import Hub
from finecut.launcher.service.jobs import Jobs
from finecut.launcher.service.metrics import Metrics
from finecut.launcher.store.store import JobStore
from finecut.proto import service_pb2
from finecut.proto.config import ConfigError, Problem, rules

_log = logging.getLogger("finecut.service")
_SERVICE = service_pb2.DESCRIPTOR.services_by_name["JobService"]
_LONGEST_CALL_SECONDS = 60.0
_EVENTS_AT_ONCE = 500


@dataclass(frozen=True)
class Malformed:
    """Bytes that are no message of the method. gRPC itself would answer INTERNAL, which blames the service."""

    name: str


@dataclass
class _Call:
    """One call, for its log line."""

    method: str
    id: str
    principal: str = ""
    job: str = ""
    code: grpc.StatusCode = grpc.StatusCode.OK


class Servicer:
    """The handlers of JobService.

    Args:
      executor: Where the blocking work is done.
    """

    def __init__(
        self, jobs: Jobs, store: JobStore, hub: Hub, directory: Directory, metrics: Metrics, executor: Executor
    ) -> None:
        self._jobs = jobs
        self._store = store
        self._hub = hub
        self._directory = directory
        self._metrics = metrics
        self._executor = executor
        self._stopping = asyncio.Event()
        self._work: dict[str, Callable[[Principal, Any], Message]] = {
            "SubmitJob": jobs.submit,
            "GetJob": jobs.get,
            "ListJobs": jobs.list_jobs,
            "CancelJob": jobs.cancel,
            "ValidateJob": jobs.validate,
            "PlanJob": jobs.plan,
        }

    def handler(self) -> grpc.GenericRpcHandler:
        """All methods of the contract."""
        handlers = {}
        for method in _SERVICE.methods:
            coding = {
                "request_deserializer": functools.partial(parse, message_factory.GetMessageClass(method.input_type)),
                "response_serializer": lambda message: message.SerializeToString(),
            }
            handlers[method.name] = (
                grpc.unary_stream_rpc_method_handler(functools.partial(self._watch, method.name), **coding)
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler(functools.partial(self._answer, method.name), **coding)
            )
        return grpc.method_handlers_generic_handler(_SERVICE.full_name, handlers)

    def stop_watches(self) -> None:
        """Ends all watches, whose clients then go on elsewhere, or here after a restart."""
        self._stopping.set()

    async def _answer(self, method: str, request: Message | Malformed, context: grpc.aio.ServicerContext) -> Message:
        call, start = _Call(method, secrets.token_hex(4)), time.perf_counter()
        try:
            caller = self._admit(call, request, context)
            call.job = getattr(request, "id", "")
            work = asyncio.get_running_loop().run_in_executor(self._executor, self._work[method], caller, request)
            answer = await asyncio.wait_for(work, _LONGEST_CALL_SECONDS)
            call.job = call.job or getattr(answer, "id", "")
            return answer
        except asyncio.CancelledError:
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            await self._abort(call, error, context)
            raise AssertionError("abort raises") from None
        finally:
            self._note(call, start)

    async def _watch(
        self, method: str, request: service_pb2.WatchJobRequest | Malformed, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[service_pb2.JobEvent]:
        call, start = _Call(method, secrets.token_hex(4)), time.perf_counter()
        try:
            caller = self._admit(call, request, context)
            assert isinstance(request, service_pb2.WatchJobRequest)
            call.job = request.id
            if problems := rules.check(request):
                raise ConfigError(problems)
            async for event in self._events(caller, request):
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            call.code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:
            await self._abort(call, error, context)
        finally:
            self._note(call, start)

    async def _events(
        self, caller: Principal, request: service_pb2.WatchJobRequest
    ) -> AsyncIterator[service_pb2.JobEvent]:
        """Events as they come; ends once the job has ended and all are sent."""
        loop, after = asyncio.get_running_loop(), request.after_sequence
        async with self._hub.watching(request.id) as changed:
            while True:
                # The job is read first: what an ended one has is then all there is.
                job = await loop.run_in_executor(self._executor, self._jobs.visible, caller, request.id)
                events = await loop.run_in_executor(
                    self._executor, self._store.events, request.id, after, _EVENTS_AT_ONCE
                )
                for event in events:
                    yield event
                    after = event.sequence
                if len(events) == _EVENTS_AT_ONCE:
                    continue
                if not job.is_active:
                    return
                await self._until_changed_or_stopping(changed)

    async def _until_changed_or_stopping(self, changed: Callable[[], Any]) -> None:
        waits = [asyncio.ensure_future(changed()), asyncio.ensure_future(self._stopping.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        if self._stopping.is_set():
            raise _StoppingError

    def _admit(self, call: _Call, request: Message | Malformed, context: grpc.aio.ServicerContext) -> Principal:
        """The caller, once it is known and allowed, and the request is a message."""
        caller = self._directory.identify(context.auth_context())
        call.principal = caller.name
        authorise(caller, call.method)
        if isinstance(request, Malformed):
            raise ConfigError([Problem("", f"the request is no {request.name}; the bytes are damaged")])
        return caller

    async def _abort(self, call: _Call, error: Exception, context: grpc.aio.ServicerContext) -> None:
        code, sentence, problems = status.of_error(error)
        if isinstance(error, _StoppingError):
            code, sentence = grpc.StatusCode.UNAVAILABLE, "the service stops; watch again from your position"
        elif code is grpc.StatusCode.INTERNAL:
            sentence = f"{sentence} (call {call.id})"
            _log.error("call %s failed", call.id, exc_info=error)
        call.code = code
        await context.abort(code, sentence, ((details.KEY, problems),) if problems else ())

    def _note(self, call: _Call, start: float) -> None:
        seconds = time.perf_counter() - start
        self._metrics.observe(call.method, call.code.name, seconds)
        _log.info(
            "call",
            extra={
                "call": call.id,
                "method": call.method,
                "principal": call.principal,
                "job": call.job,
                "code": call.code.name,
                "milliseconds": round(seconds * 1e3, 1),
            },
        )


class _StoppingError(Exception):
    """The service ends while somebody watches."""


def parse(kind: type[Message], data: bytes) -> Message | Malformed:
    """The message, or what says that the bytes are none."""
    try:
        return kind.FromString(data)
    except (DecodeError, ValueError):
        return Malformed(kind.DESCRIPTOR.name)
