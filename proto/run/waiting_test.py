"""What is said while something is waited for."""

import re
import threading
import types
from collections.abc import Callable
from typing import cast

import pytest

from finecut.proto.run import ray_session, waiting


class Listener:
    """Keeps what is said, and lets a test wait for so many lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._heard = threading.Condition()

    def __call__(self, line: str) -> None:
        with self._heard:
            self.lines.append(line)
            self._heard.notify_all()

    def wait_for(self, is_enough: Callable[[], bool]) -> None:
        with self._heard:
            assert self._heard.wait_for(is_enough, timeout=300), self.lines


def test_says_what_it_waits_for_and_then_how_long() -> None:
    heard = Listener()
    with waiting.told("Ray", heard, first_s=0.05, every_s=0.5):
        heard.wait_for(lambda: len(heard.lines) == 3)
    first, second, third = heard.lines
    assert first == "waiting for Ray"
    for line in (second, third):
        assert re.fullmatch(r"waiting for Ray: [1-9]\d* s so far", line)


def test_says_nothing_where_nothing_takes_long_and_nothing_more_once_it_is_there() -> None:
    heard, threads = Listener(), threading.active_count()
    with waiting.told("Ray", heard, first_s=600.0):
        pass
    with pytest.raises(KeyError), waiting.told("Ray", heard, first_s=600.0):
        raise KeyError("an error ends it, too")
    assert heard.lines == [] and threading.active_count() == threads


def test_says_that_ray_is_started_again_where_its_daemons_were_too_slow() -> None:
    heard, failures = Listener(), [RuntimeError("a daemon timed out during startup")] * 2

    def start(**arguments: object) -> None:
        if failures:
            raise failures.pop()

    ray = types.SimpleNamespace(init=start, shutdown=lambda: None)
    ray_session.init(cast(types.ModuleType, ray), {}, heard)
    assert [line.rpartition(";")[2] for line in heard.lines] == [" 7 more tries", " 6 more tries"]
    failures.append(RuntimeError("no room for the object store"))
    with pytest.raises(RuntimeError, match="no room"):
        ray_session.init(cast(types.ModuleType, ray), {}, heard)
    assert len(heard.lines) == 2
