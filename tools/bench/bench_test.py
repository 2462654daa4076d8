"""What the benchmarks stand on: data that is equal, memory of a whole tree of processes, a lock that is up to date."""

import json
import subprocess
import sys
import time
from pathlib import Path

from finecut.third_party.python import update_locks
from finecut.tools.bench import corpus
from finecut.tools.bench.memory import TreeUsage

FOLDER = Path(__file__).parent


def test_equal_arguments_give_equal_conversations(tmp_path: Path) -> None:
    corpus.write(tmp_path / "a", 200, 50)
    corpus.write(tmp_path / "b", 200, 50)
    corpus.write(tmp_path / "c", 200, 50, seed=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    records = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    assert len(records) == 200
    lengths = sorted(sum(len(message["content"].split()) for message in record["messages"]) for record in records)
    assert 35 < lengths[100] < 70
    roles = {tuple(message["role"] for message in record["messages"]) for record in records}
    assert roles == {("user", "assistant"), ("user", "assistant") * 2}
    assert all(message["content"][:-1].strip() for record in records for message in record["messages"])


def test_memory_of_children_counts() -> None:
    hold = "x = bytearray(50 << 20); print(1, flush=True); import time; time.sleep(60)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {hold!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        memory = TreeUsage(process.pid)
        memory.start()
        deadline = time.monotonic() + 300
        while memory.peak_bytes < 50 << 20 and time.monotonic() < deadline:
            time.sleep(0.05)
        memory.stop()
        process.kill()
    assert 50 << 20 < memory.peak_own_bytes < memory.peak_process_bytes < memory.peak_bytes < 200 << 20


def test_the_lock_is_up_to_date() -> None:
    first = (FOLDER / "requirements.lock").read_text().splitlines()[0]
    assert first == update_locks.HEADER + update_locks.digest_of([FOLDER / "requirements.in"]), (
        "requirements.lock is out of date; run bazel run //third_party/python:update_locks -- bench"
    )


def test_the_lock_names_no_path_of_the_machine_that_made_it() -> None:
    text = (FOLDER / "requirements.lock").read_text()
    assert "-c ../../third_party/python/requirements_cpu.lock" in text and " -c /" not in text
