"""Wakes those who watch jobs: at once for what this service does, within a second for what another one does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from contextlib import asynccontextmanager

from finecut.launcher.store.database import StoreUnavailableError
from finecut.launcher.store.store import JobStore

_POLL_SECONDS = 1.0


class Hub:
    """Lives in one event loop; only `changed` may be called from elsewhere."""

    def __init__(self, store: JobStore, executor: Executor) -> None:
        self._store = store
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._watchers: dict[str, set[asyncio.Event]] = {}
        self._seen: dict[str, int] = {}

    @property
    def watcher_count(self) -> int:
        return sum(map(len, self._watchers.values()))

    def changed(self, job_id: str) -> None:
        """Says that a job has new events. From any thread; after the loop's end it does nothing."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake, job_id)

    @asynccontextmanager
    async def watching(self, job_id: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """A function that waits for the next change, and returns at once for one that came in between."""
        event = asyncio.Event()
        self._watchers.setdefault(job_id, set()).add(event)

        async def wait() -> None:
            await event.wait()
            event.clear()

        try:
            yield wait
        finally:
            self._watchers[job_id].discard(event)
            if not self._watchers[job_id]:
                del self._watchers[job_id]
                self._seen.pop(job_id, None)

    async def poll(self) -> None:
        """Looks for changes that other services have made, for ever."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            with contextlib.suppress(StoreUnavailableError):
                watched = list(self._watchers)
                for job_id, sequence in (await self._sequences(watched)).items():
                    if self._seen.get(job_id) != sequence and job_id in self._watchers:
                        self._seen[job_id] = sequence
                        self._wake(job_id)

    async def _sequences(self, job_ids: list[str]) -> dict[str, int]:
        return await self._loop.run_in_executor(self._executor, self._store.sequences, job_ids)

    def _wake(self, job_id: str) -> None:
        for event in self._watchers.get(job_id, ()):
            event.set()
