"""Knowledge distillation (Hinton et al., 2015): the student learns the teacher's distribution over each next token.

    packed documents -> teacher -> hidden states at trained positions, without gradients --\\
                     -> student -> the same ----------------------------------------------+-> both heads, by chunk
                        (1 - w) * temperature^2 * divergence + w * cross entropy        w: hard_label_weight
                     -> summed over trained tokens -> / trained tokens of the step

The teacher runs in the same ranks, sharded as the student is, and its logits are never kept. With `top_k` its likeliest
tokens are compared one by one and the others as one sum, which keeps both distributions whole; these few numbers can be
worked out once before training and kept on disk (`teacher_cache`, see trainer/teachers); no teacher is in memory then.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from torch import Tensor

from finecut.proto import artifact_pb2
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.liveness.liveness import Liveness
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.ops.distillation import DistillationConfig, TeacherStates, divergence_sum
from finecut.trainer.ops.kept_tokens import KeptTokens
from finecut.trainer.recipes import frozen
from finecut.trainer.recipes.config import DistillConfig
from finecut.trainer.recipes.documents import cross_entropy_of, head_config, inputs_of
from finecut.trainer.recipes.objective import Losses, NothingKept, Objective, means
from finecut.trainer.recipes.supervised import Setup
from finecut.trainer.teachers import cache
from finecut.trainer.teachers.stored import StoredTeacher
from finecut.trainer.teachers.teacher import LiveTeacher, Teacher


@dataclasses.dataclass(frozen=True)
class Distill:
    """The recipe."""

    config: DistillConfig
    stored: StoredTeacher | None = None
    data_kind = artifact_pb2.DataArtifact.DOCUMENTS

    def output_head(self, source: ModelSource) -> OutputHead | None:
        """The language-model head stays."""
        return None

    @property
    def roles_let_go(self) -> tuple[str, ...]:
        """Models of the job that are not there while the student learns."""
        return ("teacher",) if self.config.teacher_cache else ()

    def before_model(self, setup: Setup, liveness: Liveness) -> tuple[Distill, list[str]]:
        """Keeps what the teacher says, where it is to be kept, while the student is not there."""
        config = self.config
        if config.teacher_cache is None or config.top_k is None:
            return self, []
        source, _ = frozen.checked_role(setup.place.roles["teacher"], "teacher", setup)
        wanted = cache.Wanted(
            config=config.teacher_cache,
            source=source,
            load=lambda: self._load(setup),
            data_fingerprint=setup.data.fingerprint,
            precision=setup.precision,
            top_k=config.top_k,
            temperature=config.temperature,
            vocabulary_size=setup.decoder_config.vocabulary_size,
            block_size=setup.data.block_size,
            blocks_at_once=config.training.micro_blocks,
        )
        teacher, note = cache.open_stored(wanted, setup.place, setup.devices, lambda: liveness.at(0, "teacher"))
        return dataclasses.replace(self, stored=teacher), [note]

    def objective(self, model: Decoder, setup: Setup) -> Objective:
        """The loss against the teacher, which it loads unless what it says is kept."""
        return DistillationLoss(self.config, self.stored or LiveTeacher(self._load(setup)))

    def _load(self, setup: Setup) -> Decoder:
        return frozen.load_role(setup.place.roles["teacher"], "teacher", self.config.training, setup)


@dataclasses.dataclass(frozen=True)
class DistillationLoss(NothingKept):
    """The objective. Its unit is the trained token."""

    is_of_tokens = True

    config: DistillConfig
    teacher: Teacher

    def num_units(self, batch: MicroBatch) -> int:
        """Trained tokens."""
        return batch.tokens.trained

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The mix, and its parts."""
        trained = TrainedTokens.of(batch.targets_BL)
        with self.teacher.says(batch, trained) as teacher:
            student = _Student(self.config, trained, teacher)
            loss = model(*inputs_of(batch), read_out=student)
        return Losses(loss, student.sums)

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Means over trained tokens, in nats."""
        return means(sums, num_units)


class _Student:
    """Reads the student out as the loss; `sums` are there afterwards. No dataclass: FSDP2 hands on copies of those."""

    def __init__(self, config: DistillConfig, trained: TrainedTokens, teacher: TeacherStates | KeptTokens) -> None:
        self.config = config
        self.trained = trained
        self.teacher = teacher
        self.sums: dict[str, Tensor] = {}

    def __call__(self, model: Decoder, hidden_BLD: Tensor) -> Tensor:
        config = self.config
        hidden_ND = hidden_BLD.flatten(0, 1)[self.trained.position_N]
        comparison = DistillationConfig(head_config(model), config.divergence, config.temperature, config.top_k)
        divergence = divergence_sum(hidden_ND, model.head_weight(), self.teacher, comparison)
        hard_weight = config.hard_label_weight
        self.sums = {"divergence": divergence.detach()}
        if not hard_weight:
            return divergence
        hard = cross_entropy_of(model, hidden_BLD, self.trained)
        self.sums["cross_entropy"] = hard.detach()
        return (1 - hard_weight) * divergence + hard_weight * hard
