"""Focal loss (Lin et al., 2017): tokens that the model knows already weigh little."""

from collections.abc import Mapping

from torch import Tensor

from finecut.trainer.data.batches import MicroBatch
from finecut.trainer.models.decoder import Decoder
from finecut.trainer.recipes.documents import TokenLogProbabilities, inputs_of
from finecut.trainer.recipes.objective import Losses, NothingKept, means


class FocalLoss(NothingKept):
    """Sum over trained tokens of -(1 - p)^gamma * log p."""

    def __init__(self, gamma: str = "2") -> None:
        self.gamma = float(gamma)

    def num_units(self, batch: MicroBatch) -> int:
        """The loop divides the sum by these, over all ranks and micro-batches."""
        return batch.tokens.trained

    def losses(self, model: Decoder, batch: MicroBatch, gradient_scale: float) -> Losses:
        """0 where a position is not trained: its log-probability is given as 0."""
        log_probability_T = model(*inputs_of(batch), read_out=TokenLogProbabilities(batch.targets_BL))
        weight_T = (1 - log_probability_T.exp()) ** self.gamma
        return Losses(-(weight_T * log_probability_T).sum(), {"cross_entropy": -log_probability_T.detach().sum()})

    def metrics(self, sums: Mapping[str, Tensor], num_units: int) -> dict[str, float]:
        """Reported beside the loss."""
        return means(sums, num_units)
