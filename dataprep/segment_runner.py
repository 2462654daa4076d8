r"""Runs segments: in this process, in copies of it, or on a Ray that is there. The result is the same.

segments -> those of an earlier try are taken over
        \-> few bytes: one after another here
        \-> many: in a copy of this process for each core
        \-> under the launcher: through Ray Data, which sends each to a process of the cluster that has a core
outcomes, always in the order of segments
"""

import dataclasses
import functools
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from finecut.dataprep import local_processes, segment_files
from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import SEGMENT_BYTES, Outcome, Segment
from finecut.proto.config import UserError
from finecut.proto.run import node_roles

# Less than this is done before processes have started and know the words that come back.
MIN_BYTES_TO_FORK = 2 * SEGMENT_BYTES
_POLL_SECONDS = 1.0
# Segments that have not begun, and behind which none has: more than a cluster has cores.
_FURTHEST_AHEAD = 4096

ShowProgress = Callable[[Sequence[Outcome]], None]


def run(
    worker: SegmentWorker, segments: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[tuple[Segment, Outcome], None, None]:
    """Yields the outcome of each segment in order; its documents are then in `folder`.

    `show` is called every now and then with the outcomes so far, of finished segments and of those at work. To close
    it is to stop the work. Raises UserError: the first in the order of segments.
    """
    done = {s.number: outcome for s in segments if (outcome := segment_files.finished(folder, s.number))}
    todo = [segment for segment in segments if segment.number not in done]
    taken_over = list(done.values())
    execute = _execution(todo)
    with closing(execute(worker, todo, folder, lambda outcomes: show([*taken_over, *outcomes]))) as outcomes:
        for segment in segments:
            yield segment, done.get(segment.number) or next(outcomes)


def _execution(todo: Sequence[Segment]) -> "_Execution":
    """What suits the size of the work, and the place."""
    num_bytes = sum(segment.num_bytes for segment in todo)
    if len(todo) > 1 and num_bytes and _ray_is_there():
        return _on_ray
    if len(todo) > 1 and num_bytes >= MIN_BYTES_TO_FORK and local_processes.num_cores() > 1:
        return _in_processes
    return _in_turn


def _ray_is_there() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _in_turn(
    worker: SegmentWorker, todo: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[Outcome, None, None]:
    finished: list[Outcome] = []
    for segment in todo:
        finished.append(worker.run(segment, folder, lambda outcome: show([*finished, outcome])))
        yield finished[-1]


def _in_processes(
    worker: SegmentWorker, todo: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[Outcome, None, None]:
    run = functools.partial(_run_segment, worker, folder)
    with closing(local_processes.map_in_order(run, todo)) as errors, _watch(todo, folder, show):
        for segment, error in zip(todo, errors, strict=True):
            yield _outcome(segment, folder, error)


def _on_ray(
    worker: SegmentWorker, todo: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[Outcome, None, None]:
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One block a segment, so that each is a task: it waits for a core, and is tried again where its process dies.
    numbers = ray.data.from_items([{"index": index} for index in range(len(todo))], override_num_blocks=len(todo))
    work = functools.partial(_ray_task, config=worker.config, todo=ray.put(list(todo)), folder=folder)
    with _watch(todo, folder, show):
        role = node_roles.asked(node_roles.DATA, ray.cluster_resources())
        for row in numbers.map(work, num_cpus=1, resources=role).iter_rows():
            yield _outcome(todo[row["index"]], folder, row["error"])


_Execution = Callable[[SegmentWorker, Sequence[Segment], Path, ShowProgress], Generator[Outcome, None, None]]


def _outcome(segment: Segment, folder: Path, error: str) -> Outcome:
    """What another process has left of a segment, checked."""
    if error:
        raise UserError(error)
    outcome = segment_files.finished(folder, segment.number)
    if outcome is None:
        raise UserError(
            f"{folder} lacks segment {segment.number:05d}, which a worker has written; "
            "storage.root must be a folder that all machines of the cluster share"
        )
    return outcome


def _ray_task(row: dict[str, Any], config: PrepareConfig, todo: Any, folder: Path) -> dict[str, Any]:
    """One segment in a process of the cluster."""
    import ray

    # Processes are as many as cores: threads of the tokenizer would only make them fight.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    segment: Segment = ray.get(todo)[row["index"]]
    return {**row, "error": _run_segment(_worker(config), folder, segment)}


def _run_segment(worker: SegmentWorker, folder: Path, segment: Segment) -> str:
    """One segment in another process. An error comes back as text, so that the first in order is the one shown."""
    progress = _progress_path(folder, segment)
    try:
        worker.run(segment, folder, functools.partial(_write_progress, progress))
    except UserError as error:
        return str(error)
    finally:
        progress.unlink(missing_ok=True)
    return ""


@functools.lru_cache(maxsize=1)
def _worker(config: PrepareConfig) -> SegmentWorker:
    """A process is given many segments and loads the tokenizer once."""
    return SegmentWorker(config)


def _progress_path(folder: Path, segment: Segment) -> Path:
    return folder / "segments" / f"{segment.number:05d}.progress"


def _write_progress(path: Path, outcome: Outcome) -> None:
    """For `_watch`, which reads what stands there at any time; half a file is read again a second later."""
    numbers = [outcome.num_records, outcome.num_documents, outcome.num_tokens, outcome.num_bad]
    path.write_text(json.dumps(numbers), encoding="utf-8")


@contextmanager
def _watch(todo: Sequence[Segment], folder: Path, show: ShowProgress) -> Iterator[None]:
    """Shows what workers have done so far, every second: a single segment may be a large compressed file."""
    stop = threading.Event()
    known: dict[int, Outcome] = {}

    def look() -> None:
        at_work: list[Outcome] = []
        num_idle = 0
        for segment in todo:
            if segment.number in known:
                continue
            if note := segment_files.peek(folder, segment.number):
                known[segment.number] = note
            elif progress := _read_progress(_progress_path(folder, segment)):
                at_work.append(progress)
            elif (num_idle := num_idle + 1) > _FURTHEST_AHEAD:
                break  # they begin in order
        show([*known.values(), *at_work])

    def watch() -> None:
        while not stop.wait(_POLL_SECONDS):
            look()

    thread = threading.Thread(target=watch, daemon=True, name="segment-progress")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()


def _read_progress(path: Path) -> Outcome | None:
    try:
        records, documents, tokens, bad = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return dataclasses.replace(Outcome(), num_records=records, num_documents=documents, num_tokens=tokens, num_bad=bad)
