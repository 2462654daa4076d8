"""Knowledge distillation (Hinton et al., 2015): the student learns the teacher's distribution over each next token.

    packed documents -> teacher -> hidden states at trained positions, without gradients --\\
                     -> student -> the same ----------------------------------------------+-> both heads, by chunk
                        (1 - w) * temperature^2 * divergence + w * cross entropy        w: hard_label_weight
                     -> summed over trained tokens -> / trained tokens of the step

The teacher runs in the same ranks, sharded as the student is; its logits are never kept, so nothing is cached and
the data may be packed and shuffled as for fine-tuning. With `top_k` the teacher's likeliest tokens are compared one by
one and the others as one sum, which keeps both distributions whole.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from finecut.proto import artifact_pb2
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.ops.distillation import DistillationConfig, divergence_sum
from finecut.trainer.parallel import gathering
from finecut.trainer.recipes import frozen
from finecut.trainer.recipes.config import DistillConfig
from finecut.trainer.recipes.documents import cross_entropy_of, head_config, inputs_of
from finecut.trainer.recipes.objective import Losses, NothingKept, Objective, means
from finecut.trainer.recipes.supervised import Setup


@dataclasses.dataclass(frozen=True)
class Distill:
    """The recipe."""

    config: DistillConfig
    data_kind = artifact_pb2.DataArtifact.DOCUMENTS

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """The language-model head stays."""
        return None

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """The loss against the teacher, which it loads."""
        teacher = frozen.load_role(setup.place.roles["teacher"], "teacher", self.config.training, setup)
        return DistillationLoss(self.config, teacher)


@dataclasses.dataclass(frozen=True)
class DistillationLoss(NothingKept):
    """The objective. Its unit is the trained token."""

    is_of_tokens = True

    config: DistillConfig
    teacher: Decoder

    def num_units(self, batch: MicroBatch) -> int:
        """Trained tokens."""
        return batch.tokens.trained

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The mix, and its parts."""
        trained = TrainedTokens.of(batch.targets_BL)
        with torch.no_grad():
            teacher_hidden_NE = self.teacher(*inputs_of(batch), read_out=_Trained(trained))
        student = _Student(self, trained, teacher_hidden_NE)
        loss = model(*inputs_of(batch), read_out=student)
        # FSDP2 left the teacher's root unit, and with it its head, gathered.
        gathering.reshard(self.teacher)
        return Losses(loss, student.sums)

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Means over trained tokens, in nats."""
        return means(sums, num_units)


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Reads a decoder out as its hidden states at trained positions, [N, E]."""

    trained: TrainedTokens

    def __call__(self, model: Decoder, hidden_BLE: Tensor) -> Tensor:
        return hidden_BLE.flatten(0, 1)[self.trained.position_N]


class _Student:
    """Reads the student out as the loss; `sums` are there afterwards. No dataclass: FSDP2 hands on copies of those."""

    def __init__(self, loss: DistillationLoss, trained: TrainedTokens, teacher_hidden_NE: Tensor) -> None:
        self.config = loss.config
        self.teacher = loss.teacher
        self.trained = trained
        self.teacher_hidden_NE = teacher_hidden_NE
        self.sums: dict[str, Tensor] = {}

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        config, teacher = self.config, self.teacher
        hidden_TD, weight_VD = hidden_BLD.flatten(0, 1), model.head_weight()
        comparison = DistillationConfig(
            head_config(model), head_config(teacher), config.divergence, config.temperature, config.top_k
        )
        divergence = divergence_sum(
            hidden_TD[self.trained.position_N], weight_VD, self.teacher_hidden_NE, teacher.head_weight(), comparison
        )
        hard_weight = config.hard_label_weight
        self.sums = {"divergence": divergence.detach()}
        if not hard_weight:
            return divergence
        hard = cross_entropy_of(model, hidden_BLD, self.trained)
        self.sums["cross_entropy"] = hard.detach()
        return (1 - hard_weight) * divergence + hard_weight * hard
