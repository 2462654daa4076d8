"""SimPO (Meng et al., 2024): preferences without a reference model.

-log sigmoid(beta * (mean log p(chosen) - mean log p(rejected)) - margin), summed over pairs
"""

import dataclasses
from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from finecut.proto import artifact_pb2
from finecut.trainer.config import RecipeConfig
from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.models.huggingface import ModelSource
from finecut.trainer.recipes import pairs
from finecut.trainer.recipes.objective import Losses, NothingKept, means
from finecut.trainer.recipes.supervised import Setup


@dataclasses.dataclass(frozen=True)
class SimPo:
    """The recipe: the loop, packing, sharding, checkpoints and exports are those of the built-in ones."""

    config: RecipeConfig
    beta: float
    margin: float
    data_kind = artifact_pb2.DataArtifact.PAIRS

    def output_head(self, source: ModelSource) -> None:
        """The language-model head stays."""

    def objective(self, model: Decoder, setup: Setup) -> "SimPoLoss":
        """Nothing stands beside the model."""
        return SimPoLoss(self.beta, self.margin)


def recipe(config: RecipeConfig, beta: str = "2", margin: str = "1") -> SimPo:
    """Options are text."""
    return SimPo(config, float(beta), float(margin))


class SimPoLoss(NothingKept):
    """Its unit is the pair."""

    def __init__(self, beta: float, margin: float) -> None:
        self.beta, self.margin = beta, margin

    def num_units(self, batch: MicroBatch) -> int:
        return batch.num_pairs

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        log_p, lengths = pairs.answer_log_probabilities(model, batch), pairs.answer_lengths(batch)
        chosen_N = log_p.chosen_N / lengths.chosen_N.clamp(min=1)
        difference_N = chosen_N - log_p.rejected_N / lengths.rejected_N.clamp(min=1)
        loss_N = -functional.logsigmoid(self.beta * difference_N - self.margin)
        return Losses(loss_N.sum(), {"accuracy": (difference_N > 0).double().sum()})

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        return means(sums, num_units)
