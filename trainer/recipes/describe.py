"""What a run says of itself when it starts."""

from __future__ import annotations

from finecut.trainer.checkpoint.store import TrainState
from finecut.trainer.config import Precision
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.parallel import mesh
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.supervised_data import SupervisedData

_SURVEYED_STEPS = 100


def describe(model: Decoder, data: SupervisedData, precision: Precision, state: TrainState, devices: Devices) -> str:
    """The numbers that follow from the config, in one line."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in model.parameters())
    return (
        f"{trained:,} of {total:,} parameters are trained in {precision.name} on {mesh.describe(devices)};"
        f" {data.order.num_blocks:,} blocks of {data.block_size:,} tokens, steps {state.step + 1} to {data.total_steps}"
    )


def describe_balance(data: SupervisedData, state: TrainState) -> str:
    """How even attention work is over ranks, before and after balancing, in the next steps."""
    first = min(state.step + 1, data.total_steps)
    last = min(state.step + _SURVEYED_STEPS, data.total_steps)
    found = data.train.survey(first, last)
    return (
        f"attention work of the busiest rank over the mean of all: {found.balanced:.2f} (blocks taken in order:"
        f" {found.in_order:.2f}), averaged over {last - first + 1} steps"
    )
