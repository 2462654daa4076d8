"""Supervised fine-tuning.

    packed documents -> decoder -> cross entropy summed over trained tokens -> / trained tokens of the step

The loop is that of `supervised`. On request the loss of every example is recorded (see `example_losses`).
"""

from __future__ import annotations

import dataclasses

from finecut.proto import artifact_pb2
from finecut.trainer.config import SftConfig
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.recipes.objective import CrossEntropy, Objective
from finecut.trainer.recipes.supervised import Setup


@dataclasses.dataclass(frozen=True)
class Sft:
    """The recipe."""

    config: SftConfig
    data_kind = artifact_pb2.DataArtifact.DOCUMENTS

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """The language-model head stays."""
        return None

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """Cross entropy."""
        return CrossEntropy()
