"""Supervised fine-tuning.

    packed documents -> decoder -> cross entropy summed over trained tokens -> / trained tokens of the step
                                   '-> on request, summed over each example -> Parquet (see metrics.example_losses)

The loop is that of `supervised`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from finecut.proto import artifact_pb2
from finecut.trainer.data.batches import IGNORED, MicroBatch
from finecut.trainer.metrics.example_losses import FOLDER, ExampleLosses
from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.ops.cross_entropy import TrainedTokens
from finecut.trainer.recipes.config import SftConfig
from finecut.trainer.recipes.documents import cross_entropy_of, inputs_of, sum_by_document
from finecut.trainer.recipes.objective import CrossEntropy, Losses, Objective
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
        """Cross entropy, or the user's loss."""
        if self.config.loss is not None:
            return self.config.loss
        return RecordedCrossEntropy(setup) if self.config.record_example_losses else CrossEntropy()


class RecordedCrossEntropy(CrossEntropy):
    """The same cross entropy, to the bit, whose parts are kept by example and source, out of the same pass."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._records: ExampleLosses | None = None
        self._waiting: list[tuple[MicroBatch, Tensor]] = []
        self._names = setup.data.sources.names

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """The loss; in training, each example's is kept until the step is done."""
        if not model.training:
            return super().losses(model, batch, gradient_scale)
        trained = TrainedTokens.of(batch.targets_BL)
        nats_BL = torch.zeros(batch.targets_BL.shape, device=batch.targets_BL.device)

        def read_out(model: Decoder, hidden_BLD: Tensor) -> Tensor:
            return cross_entropy_of(model, hidden_BLD, trained, gradient_scale, nats_BL)

        loss = model(*inputs_of(batch), read_out=read_out)
        nats_BD = sum_by_document(batch, nats_BL)
        self._waiting.append((batch, nats_BD))
        return Losses(loss, self._by_source(batch, nats_BD) if len(self._names) > 1 else {})

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """In training, the loss a token of each source that the step has, where there are several."""
        if not sums:
            return {}
        found = zip(self._names, sums["nats"].tolist(), sums["tokens"].tolist(), strict=True)
        return {f"loss/{name}": nats / tokens for name, nats, tokens in found if tokens}

    def _by_source(self, batch: MicroBatch, nats_BD: Tensor) -> dict[str, Tensor]:
        tokens_BD = sum_by_document(batch, (batch.targets_BL != IGNORED).float())
        source_BD = torch.from_numpy(batch.sources_BD).to(nats_BD.device)
        known_BD = source_BD >= 0
        empty_S = torch.zeros(len(self._names), dtype=torch.float64, device=nats_BD.device)
        sums = {"nats": nats_BD, "tokens": tokens_BD}
        return {
            name: empty_S.scatter_add(0, source_BD[known_BD], values_BD[known_BD].double())
            for name, values_BD in sums.items()
        }

    def resumed(self, step: int) -> None:
        """Takes out what an interrupted try recorded of later steps."""
        folder = self._setup.place.artifact.parent / FOLDER
        self._records = ExampleLosses(folder, step, self._setup.devices)

    def step_done(self, step: int) -> None:
        """Hands the examples of the step over."""
        assert self._records is not None, "resumed comes first"
        for batch, nats_BD in self._waiting:
            tokens_BD = sum_by_document(batch, (batch.targets_BL != IGNORED).float())
            known_BD = batch.has_document
            self._records.add(
                step,
                batch.example_ids_BD[known_BD],
                nats_BD.cpu().numpy()[known_BD],
                tokens_BD.cpu().numpy()[known_BD],
                self._names_of(batch.sources_BD[known_BD]),
            )
        self._waiting.clear()

    def _names_of(self, sources_N: np.ndarray) -> np.ndarray:
        """Names of sources; None of those that are not known."""
        return np.array([*self._names, None], object)[sources_N]

    def before_checkpoint(self, step: int) -> None:
        """Writes what there is, so that a run resumed from the checkpoint misses nothing."""
        assert self._records is not None, "resumed comes first"
        self._records.flush(step)
