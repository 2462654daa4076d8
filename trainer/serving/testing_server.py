"""Stands in for vLLM's server in tests: `python -m finecut.trainer.serving.testing_server HOST PORT BEHAVIOUR`.

Behaviours: "good"; "slow" takes ten times as long; "mute" answers nothing; "broken" fails every request once it has
answered the first three; "fails" ends at once, as vLLM does with a model that it does not want; "never" does not
listen.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import threading

from aiohttp import web

from finecut.trainer.serving.vllm_server import ServerSettings, VllmServer

_TOKEN_S = 0.005


class StandInServer(VllmServer):
    """A model's "folder" is the behaviour of what serves it."""

    @staticmethod
    def command(settings: ServerSettings, host: str, port: int) -> list[str]:
        return [sys.executable, "-m", "finecut.trainer.serving.testing_server", host, str(port), settings.model]


def application(behaviour: str) -> web.Application:
    """The server."""
    numbers = itertools.count(1)

    async def health(request: web.Request) -> web.Response:
        return web.Response()

    async def complete(request: web.Request) -> web.Response:
        asked = await request.json()
        number = next(numbers)
        if behaviour == "broken" and number > 3:
            return web.json_response({"error": {"message": "out of order"}}, status=500)
        await asyncio.sleep(4 * _TOKEN_S * (10 if behaviour == "slow" else 1))
        text = "" if behaviour == "mute" else f"{behaviour} answers {asked['messages'][-1]['content']}"
        return web.json_response(
            {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"completion_tokens": 4}}
        )

    made = web.Application()
    made.router.add_get("/health", health)
    made.router.add_post("/v1/chat/completions", complete)
    return made


def main() -> None:
    """Serves until it is ended."""
    host, port, behaviour = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if behaviour == "fails":
        sys.exit("ValueError: the model is not one of ours")
    if behaviour == "never":
        threading.Event().wait()
    web.run_app(application(behaviour), host=host, port=port, print=None, access_log=None)


if __name__ == "__main__":
    main()
