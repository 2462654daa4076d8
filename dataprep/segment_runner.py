r"""Runs segments: in this process, or on Ray in as many processes as there are cores. The result is the same.

segments -> those of an earlier try are taken over
        \-> the others: in turn here, or through Ray Data, which sends each to a process that has a core
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

from finecut.dataprep import local_ray, segment_files
from finecut.dataprep.config import PrepareConfig
from finecut.dataprep.segment_work import SegmentWorker
from finecut.dataprep.segments import SEGMENT_BYTES, Outcome, Segment
from finecut.proto.config import UserError

# Less than this is done before a Ray of our own has started and its processes have loaded a tokenizer.
MIN_BYTES_TO_START_RAY = 6 * SEGMENT_BYTES
_POLL_SECONDS = 1.0

ShowProgress = Callable[[Sequence[Outcome]], None]


def run(
    config: PrepareConfig, segments: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[tuple[Segment, Outcome], None, None]:
    """Yields the outcome of each segment in order; its documents are then in `folder`.

    `show` is called every now and then with the outcomes so far, of finished segments and of those at work. To close
    it is to stop the work. Raises UserError: the first in the order of segments.
    """
    done = {s.number: outcome for s in segments if (outcome := segment_files.finished(folder, s.number))}
    todo = [segment for segment in segments if segment.number not in done]
    taken_over = list(done.values())
    with _execution(config, todo, folder, lambda outcomes: show([*taken_over, *outcomes])) as outcomes:
        for segment in segments:
            yield segment, done.get(segment.number) or next(outcomes)


@contextmanager
def _execution(
    config: PrepareConfig, todo: Sequence[Segment], folder: Path, show: ShowProgress
) -> Iterator[Iterator[Outcome]]:
    """The outcomes of `todo`, in order, by whatever means suit its size."""
    num_bytes = sum(segment.num_bytes for segment in todo)
    if len(todo) > 1 and num_bytes and _ray_is_there():
        with closing(_on_ray(config, todo, folder, show)) as outcomes:
            yield outcomes
    elif num_bytes >= MIN_BYTES_TO_START_RAY and local_ray.num_cores() > 1:
        with local_ray.started(), closing(_on_ray(config, todo, folder, show)) as outcomes:
            yield outcomes
    else:
        yield _in_turn(config, todo, folder, show)


def _ray_is_there() -> bool:
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _in_turn(config: PrepareConfig, todo: Sequence[Segment], folder: Path, show: ShowProgress) -> Iterator[Outcome]:
    if not todo:
        return
    worker = SegmentWorker(config)
    finished: list[Outcome] = []
    for segment in todo:
        finished.append(worker.run(segment, folder, lambda outcome: show([*finished, outcome])))
        yield finished[-1]


def _on_ray(
    config: PrepareConfig, todo: Sequence[Segment], folder: Path, show: ShowProgress
) -> Generator[Outcome, None, None]:
    import ray

    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    # One block a segment, so that each is a task: it waits for a core, and is tried again where its process dies.
    numbers = ray.data.from_items([{"index": index} for index in range(len(todo))], override_num_blocks=len(todo))
    work = functools.partial(_ray_task, config=config, todo=ray.put(list(todo)), folder=folder)
    with _watch(todo, folder, show):
        for row in numbers.map(work, num_cpus=1).iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            outcome = segment_files.finished(folder, todo[row["index"]].number)
            if outcome is None:
                raise UserError(
                    f"{folder} lacks segment {todo[row['index']].number:05d}, which a worker has written; "
                    "storage.root must be a folder that all machines of the cluster share"
                )
            yield outcome


def _ray_task(row: dict[str, Any], config: PrepareConfig, todo: Any, folder: Path) -> dict[str, Any]:
    """One segment in a worker's process. An error comes back as text, so that the first in order is the one shown."""
    import ray

    # Processes are as many as cores: threads of the tokenizer would only make them fight.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    segment: Segment = ray.get(todo)[row["index"]]
    progress = _progress_path(folder, segment)
    try:
        _worker(config).run(segment, folder, functools.partial(_write_progress, progress))
    except UserError as error:
        return {**row, "error": str(error)}
    finally:
        progress.unlink(missing_ok=True)
    return {**row, "error": ""}


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
        for segment in todo:
            if segment.number not in known:
                note = segment_files.peek(folder, segment.number)
                if note is not None:
                    known[segment.number] = note
        at_work = [found for s in todo if s.number not in known if (found := _read_progress(_progress_path(folder, s)))]
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
