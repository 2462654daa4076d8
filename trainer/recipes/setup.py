"""What a supervised run has once it is clear that everything fits together."""

from __future__ import annotations

import dataclasses

from finecut.trainer.config import Precision, StagePlace
from finecut.trainer.models.config import DecoderConfig
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.supervised_data import SupervisedData


@dataclasses.dataclass(frozen=True)
class Setup:
    """The parts that recipes and the loop share."""

    place: StagePlace
    source: ModelSource
    decoder_config: DecoderConfig
    precision: Precision
    data: SupervisedData
    devices: Devices
    notes: tuple[str, ...] = ()  # lines for people, of what was chosen
