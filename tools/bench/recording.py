"""What recording costs: one training run whose steps are recorded and not recorded in turns.

    bazel run //tools/bench:recording                                      # a small model on this machine
    python -m finecut.tools.bench.recording --shape=0.6B                   # from the bundle, on a GPU
    torchrun --nproc-per-node=2 -m finecut.tools.bench.recording           # with the exchange between ranks

Model, data, optimizer step, monitor, TensorBoard and event log are the trainer's own, with every metric on. A round is
as many steps with them as lie between two records of details, and as many without, in short turns (on, off, off, on),
so that what slows the machine slows both. Steps that are not recorded call the same `train_step` and nothing else.

Prints a table, a row a round: milliseconds a step, and the ratio of seconds, on the wall and of all processors.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from absl import app, flags

from finecut.tools.bench import recording_inputs
from finecut.tools.bench.recording_inputs import SHAPES
from finecut.trainer.metrics.recorder import Recorder
from finecut.trainer.parallel import process_group
from finecut.trainer.parallel.leaving import leave
from finecut.trainer.parallel.loss_scale import LossScaler
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import garbage, optimization
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.monitor import Monitor
from finecut.trainer.recipes.sft import Sft
from finecut.trainer.recipes.step import train_step
from finecut.trainer.recipes.supervised import Setup, build_model

_SHAPE = flags.DEFINE_enum("shape", "small", list(SHAPES), "Size of the model and of its steps.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds.", lower_bound=2)
_EVERY = flags.DEFINE_integer("detail_every_steps", 50, "metrics.detail_every_steps.", lower_bound=5)
_EXAMPLES = flags.DEFINE_bool("example_losses", False, "Record the loss of each example as well (sft only).")
_WARM_UP = 10
_TURN = 5


@dataclasses.dataclass
class Spent:
    """Seconds of some steps: on the wall, and of the processors in all threads of this process."""

    wall: float = 0.0
    processor: float = 0.0
    num_steps: int = 0


@dataclasses.dataclass(frozen=True)
class Round:
    """The steps of one round, recorded and not."""

    on: Spent
    off: Spent

    @property
    def ratios(self) -> tuple[float, float]:
        """Recorded over not recorded: wall, processors."""
        return self.on.wall / self.off.wall, self.on.processor / self.off.processor


@dataclasses.dataclass(frozen=True)
class Result:
    """What was measured; `first_seconds`: a step without a record, then the first with details, which compiles."""

    rounds: tuple[Round, ...]
    first_seconds: tuple[float, float]
    num_recorded: int
    num_detailed: int


class Bench:
    """A model in training, with a monitor that sees some of its steps. All ranks call the same methods."""

    def __init__(self, setup: Setup, config: SftConfig, recorder: Recorder, first: int) -> None:
        """`first`: the number that the first recorded step has for the monitor."""
        self._setup, self._config, self._recorder = setup, config, recorder
        self._model = build_model(config, setup.decoder_config, setup.source, setup.precision, setup.devices)
        self._optimizer = optimization.adamw(self._model, config.training.optimizer)
        plain = dataclasses.replace(config, record_example_losses=False)
        self._plain, self._objective = (Sft(one).objective(self._model, setup) for one in (plain, config))
        self._objective.resumed(0)
        self._scaler = LossScaler(enabled=False)
        self._steps, self._recorded = itertools.count(1), itertools.count(first)
        self.watch_anew()

    def train(self, num_steps: int, is_recorded: bool) -> Spent:
        """So many steps more."""
        with self._measured(num_steps) as spent:
            for _ in range(num_steps):
                self._recorded_step() if is_recorded else self._plain_step()
        return spent

    def watch_anew(self) -> None:
        """A monitor that has spent nothing of its budget (metrics/budget.py), so that every record is made."""
        metrics = self._config.training.metrics
        self._monitor = Monitor(self._objective, self._model, self._setup, metrics, self._recorder, 0)

    def write_examples(self, step: int) -> None:
        """What comes before a checkpoint."""
        self._objective.before_checkpoint(step)

    def _plain_step(self) -> None:
        setup, step = self._setup, next(self._steps)
        train_step(
            self._model, self._optimizer, self._scaler, setup.data, self._config, step, setup.devices, self._plain
        )

    def _recorded_step(self) -> None:
        setup, step, number = self._setup, next(self._steps), next(self._recorded)
        with self._monitor.step(number, self._scaler.scale) as objective:
            numbers = train_step(
                self._model, self._optimizer, self._scaler, setup.data, self._config, step, setup.devices, objective
            )
        self._monitor.record(number, numbers, {}, is_last=False)

    @contextlib.contextmanager
    def _measured(self, num_steps: int) -> Iterator[Spent]:
        spent = Spent(num_steps=num_steps)
        _wait(self._setup.devices)
        wall, processor = time.perf_counter(), time.process_time()
        yield spent
        _wait(self._setup.devices)
        spent.wall, spent.processor = time.perf_counter() - wall, time.process_time() - processor


def measure(root: Path, shape: str, num_rounds: int, every: int, example_losses: bool, devices: Devices) -> Result:
    """Trains in `root`, which all ranks see. Collective. `every`: steps between details."""
    setup, config = recording_inputs.make(
        root, SHAPES[shape], _WARM_UP + 2 * every * num_rounds + every, every, example_losses, devices
    )
    # The first record of details comes while nothing is timed.
    with contextlib.closing(setup.data), Recorder(setup.place, setup.data.total_steps, 0, devices) as recorder:
        bench = Bench(setup, config, recorder, first=every)
        bench.train(1, is_recorded=False)
        garbage.settle()  # as the loop does
        bench.train(_WARM_UP - 2, is_recorded=False)
        plain = bench.train(1, is_recorded=False)
        first = bench.train(1, is_recorded=True)
        bench.write_examples(every)
        bench.watch_anew()
        rounds = tuple(_round(bench, every) for _ in range(num_rounds))
    recorded = recording_inputs.recorded(setup) if devices.is_main else []
    detailed = [values for values in recorded if "probe/compute_slowest_over_median" in values]
    return Result(rounds, (plain.wall, first.wall), len(recorded) - 1, len(detailed) - 1)


def _round(bench: Bench, every: int) -> Round:
    """Equal numbers of steps of both kinds, in turns; the order of the two changes from turn to turn."""
    round_ = Round(Spent(), Spent())
    left = every
    for turn in itertools.count():
        if not left:
            return round_
        size = min(_TURN, left)
        left -= size
        for is_recorded in (True, False) if turn % 2 == 0 else (False, True):
            spent, total = bench.train(size, is_recorded), round_.on if is_recorded else round_.off
            total.wall += spent.wall
            total.processor += spent.processor
            total.num_steps += spent.num_steps
    raise AssertionError("itertools.count ends")


def table(result: Result) -> list[str]:
    """The lines that are printed."""
    lines = [f"{'round':8} {'off ms':>9} {'on ms':>9} {'wall':>8} {'processors':>11}"]
    for number, one in enumerate(result.rounds, start=1):
        off, on = (1e3 * spent.wall / spent.num_steps for spent in (one.off, one.on))
        wall, processor = one.ratios
        lines.append(f"{number:<8} {off:9.2f} {on:9.2f} {wall:8.4f} {processor:11.4f}")
    for name, place in (("wall", 0), ("processors", 1)):
        extra = [100 * (one.ratios[place] - 1) for one in result.rounds]
        error = statistics.stdev(extra) / len(extra) ** 0.5
        lines.append(
            f"recording costs {statistics.fmean(extra):+.2f}% of {name}, standard error {error:.2f}%;"
            f" median {statistics.median(extra):+.2f}%"
        )
    recorded = sum(one.on.num_steps for one in result.rounds)
    return [
        *lines,
        f"records of {result.num_recorded} of {recorded} steps, {result.num_detailed} of them with details",
        f"not counted: the very first details, which compile and load a tokenizer ({result.first_seconds[1]:.2f} s with"
        f" their step, {result.first_seconds[0]:.2f} s the step before)",
    ]


def _wait(devices: Devices) -> None:
    if devices.device.type == "cuda":
        torch.cuda.synchronize(devices.device)


def main(argv: list[str]) -> int:
    """Measures, and prints."""
    del argv
    with process_group.connect() as devices, tempfile.TemporaryDirectory(prefix="finecut-bench-") as own:
        root = Path(devices.from_main(own))
        result = measure(root, _SHAPE.value, _ROUNDS.value, _EVERY.value, _EXAMPLES.value, devices)
        if devices.is_main:
            on_gpu = devices.device.type == "cuda"
            device = torch.cuda.get_device_name() if on_gpu else f"{torch.get_num_threads()} threads of the CPU"
            about = f"{SHAPES[_SHAPE.value].name}, {devices.world_size} ranks, load {os.getloadavg()[0]:.1f}"
            print("\n".join([f"{device}, torch {torch.__version__}, {about}", *table(result)]), flush=True)
        devices.barrier()
    return 0


if __name__ == "__main__":
    app.run(lambda argv: leave(main(argv)))
