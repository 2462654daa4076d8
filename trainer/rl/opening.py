"""How a recipe with rollouts begins: engines start in a thread beside the loading of all models.

Where both need the same GPU, engines start before the models are loaded, and sleep meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from finecut.trainer.config import StagePlace
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import supervised
from finecut.trainer.rl import engines
from finecut.trainer.rl.config import RolloutRecipeConfig
from finecut.trainer.rl.learner import Learner
from finecut.trainer.rl.publisher import Publisher
from finecut.trainer.rl.rollouts import Rollouts
from finecut.trainer.rl.session import Session
from finecut.trainer.rl.setup import RlSetup, prepare
from finecut.trainer.rl.start import Start
from finecut.trainer.rl.tasks import TaskAccuracy
from finecut.trainer.rollout.engine_group import RayEngines
from finecut.trainer.rollout.fleet import Fleet
from finecut.trainer.rollout.weight_source import DecoderSource


@contextlib.contextmanager
def opened(config: RolloutRecipeConfig, place: StagePlace, devices: Devices, liveness: Liveness) -> Iterator[Session]:
    """Prompts, policy and engines; the recipe adds its other roles, and then enters its `started`. Collective.

    Raises UserError for what the user can mend.
    """
    liveness.at(0, "engines")
    start = Start()
    with start.phase("inputs"):
        setup = prepare(config, place, devices)
    config, devices = setup.config, setup.devices
    holder: list[Rollouts] = []
    messages: list[str] = []

    def resync(to: RayEngines) -> None:
        holder[0].resync_from_thread(to)

    with contextlib.ExitStack() as stack:
        executor = stack.enter_context(ThreadPoolExecutor(1, "engines"))
        starting = None
        if devices.is_main:
            starting = executor.submit(_start, setup, resync, messages.append, start)
            stack.callback(_end, starting)
        if setup.plan.takes_turns and devices.device.type == "cuda":
            # vLLM measures free memory while it starts, and must be alone on the GPU.
            _rest(starting.result() if starting else None, devices)
        liveness.at(0, "load")
        with start.phase("policy"):
            model = supervised.build_model(config, setup.decoder_config, setup.source, setup.precision, devices)
            peak = config.training.optimizer.learning_rate
            policy = Learner(model, config.training, peak, setup.precision, setup.last_step, devices)
        number_type = getattr(torch, setup.plan.engine.number_type)
        publisher = Publisher(DecoderSource(model, number_type), setup.plan, config.rollout.max_staleness, devices)
        rollouts = Rollouts(setup, publisher)
        holder.append(rollouts)
        session = Session(setup, liveness, policy, rollouts, messages=messages, start=start, starting=starting)
        for asked in setup.tasks:
            task = TaskAccuracy(asked, setup.tokenizer, devices)
            session.measurements.append(stack.enter_context(contextlib.closing(task)))
        yield session


def _start(
    setup: RlSetup, resync: Callable[[RayEngines], None], on_message: Callable[[str], None], start: Start
) -> Fleet:
    with start.phase("engines"):
        return engines.start(setup.plan.fleet, resync, on_message)


def _end(starting: Future[Fleet]) -> None:
    """Ends the engines, also where a model could not be loaded while they started."""
    with contextlib.suppress(Exception):  # they did not start, which is told where they are waited for
        starting.result().shut_down()


def _rest(fleet: Fleet | None, devices: Devices) -> None:
    if fleet:
        fleet.sleep()
    devices.barrier()
