"""A head whose rows are split over a tensor-parallel group: what its ranks tell each other about a chunk of tokens.

Shapes: T tokens, N of them trained, C tokens of a chunk, D hidden size, V rows of the padded vocabulary on this rank.

No rank ever has a token's whole logits. Three numbers a token go over the group: the largest log-normaliser, then the
sum of all, relative to it, beside the target's logit. The loss and the log-probabilities of `cross_entropy` use it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from finecut.trainer.ops.tensor_collectives import all_reduce

NO_TARGET = -1  # a target that lies in another slice of the vocabulary


@dataclasses.dataclass(frozen=True)
class VocabularySlice:
    """This rank's rows of the head: equally many on each rank of the group, from `first_row` on."""

    first_row: int
    group_name: str

    def targets(self, target_N: Tensor, num_rows: int) -> Tensor:
        """Targets counted from this rank's first row; NO_TARGET where another rank has them."""
        own_N = target_N - self.first_row
        return torch.where((own_N >= 0) & (own_N < num_rows), own_N, NO_TARGET)

    def size_of(self, vocabulary_size: int, num_rows: int) -> int:
        """How many of this rank's rows are real tokens."""
        return min(max(0, vocabulary_size - self.first_row), num_rows)

    def combine(self, log_normalizer_C: Tensor, target_logit_C: Tensor) -> tuple[Tensor, Tensor]:
        """Log-normaliser and target's logit over the whole vocabulary, from each rank's over its rows. Collective."""
        largest_C = all_reduce(log_normalizer_C, self.group_name, "max")
        parts_2C = torch.stack([(log_normalizer_C - largest_C).exp(), target_logit_C])
        sum_C, target_logit_C = all_reduce(parts_2C, self.group_name).unbind()
        return largest_C + sum_C.log(), target_logit_C

    def gather(self, own_CK: Tensor) -> Tensor:
        """What each rank has, side by side in the order of ranks. Collective."""
        size = torch.distributed.distributed_c10d._resolve_process_group(self.group_name).size()
        found = torch.ops._c10d_functional.all_gather_into_tensor(own_CK.contiguous(), size, self.group_name)
        return torch.cat(torch.ops._c10d_functional.wait_tensor(found).chunk(size), dim=-1)

    def sum(self, partial: Tensor) -> Tensor:
        """What each rank's rows add up to. Collective."""
        return all_reduce(partial, self.group_name)
