"""Requests on their way to a replica. What one version cannot answer, before a byte went back, the other is asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import aiohttp
from aiohttp import web

from finecut.trainer.serving.traffic import Traffic
from finecut.trainer.serving.version import Replica, Version

_HOP_HEADERS = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade", "authorization"}
_NO_LIMIT = aiohttp.ClientTimeout(total=None, sock_connect=5)
_LOST = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class _UnansweredError(Exception):
    """A replica failed before a byte of its answer went back."""


class Proxy:
    """Passes requests on."""

    def __init__(
        self, traffic: Traffic, versions: Mapping[str, Version], session: aiohttp.ClientSession, key: str
    ) -> None:
        """`key`: what replicas ask for."""
        self._traffic = traffic
        self._key = key
        self._versions = versions
        self._session = session

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers as vLLM does. Errors of our own have OpenAI's form."""
        try:
            body = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            limit = error.text or "the limit"
            return error_response(413, f"the request is larger than this endpoint takes ({limit}); send less at once")
        for name in self._traffic.order():
            version = self._versions.get(name)
            replica = version.choose() if version else None
            if replica is None:
                self._traffic.record(name, is_failure=True)
                continue
            try:
                response = await self._ask(replica, request, body)
            except _UnansweredError:
                self._traffic.record(name, is_failure=True)
                continue
            self._traffic.record(name, is_failure=False)
            return response
        return error_response(503, "no replica of this endpoint answers; try again")

    async def _ask(self, replica: Replica, request: web.Request, body: bytes) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP_HEADERS}
        headers["Authorization"] = f"Bearer {self._key}"  # clients' keys are this endpoint's matter
        replica.num_running += 1
        try:
            url = replica.address.url + request.path_qs
            try:
                answer = await self._session.request(
                    request.method, url, data=body, headers=headers, timeout=_NO_LIMIT, allow_redirects=False
                )
            except aiohttp.ClientConnectorError as error:
                replica.lost()
                raise _UnansweredError from error
            except _LOST as error:
                raise _UnansweredError from error
            async with answer:
                if answer.status >= 500:
                    raise _UnansweredError
                if answer.content_type == "text/event-stream":
                    return await _stream(request, answer)
                try:
                    content = await answer.read()
                except _LOST as error:
                    raise _UnansweredError from error
                return web.Response(status=answer.status, body=content, headers=_kept(answer.headers))
        finally:
            replica.num_running -= 1


async def _stream(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    chunks = answer.content.iter_any()
    try:
        first = await anext(chunks)
    except StopAsyncIteration:
        first = b""
    except _LOST as error:
        raise _UnansweredError from error
    response = web.StreamResponse(status=answer.status, headers=_kept(answer.headers))
    await response.prepare(request)
    await response.write(first)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    dropped = _HOP_HEADERS | {"content-encoding", "date", "server"}
    return {name: value for name, value in headers.items() if name.lower() not in dropped}


def error_response(status: int, message: str) -> web.Response:
    """An error as OpenAI's clients read it."""
    error = {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "code": status}
    return web.json_response({"error": error}, status=status)
