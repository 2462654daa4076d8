"""A step's answers as arrays: what was sampled, by whom, and what it is worth. Every rank holds all of it.

Shapes: N answers, groups side by side; T tokens of the longest answer, inserted ones included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from finecut.trainer.rollout.sample import FinishReason, Sample


@dataclasses.dataclass(frozen=True)
class Experience:
    """One batch of rollouts."""

    samples: tuple[Sample, ...]
    # NaN: not scored, and not learnt from.
    rewards_N: Tensor
    # True where the policy sampled the token.
    mask_NT: Tensor
    # Under the policy that sampled; 0 outside the mask.
    behaviour_log_probs_NT: Tensor
    # Policy versions that the token is behind the trainer's; 0 outside the mask.
    staleness_NT: Tensor

    @staticmethod
    def of(samples: Sequence[Sample], rewards: Sequence[float], version: int, device: torch.device) -> Experience:
        """From samples and their rewards, when the trainer is at `version`."""
        longest = max(len(sample.answer_ids) for sample in samples)
        shape = (len(samples), longest)
        mask_NT: np.ndarray = np.zeros(shape, bool)
        log_probs_NT: np.ndarray = np.zeros(shape, np.float32)
        staleness_NT: np.ndarray = np.zeros(shape, np.int64)
        for n, sample in enumerate(samples):
            own = slice(0, len(sample.answer_ids))
            mask_NT[n, own] = sample.loss_mask
            log_probs_NT[n, own] = sample.log_probabilities
            staleness_NT[n, own] = version - np.asarray(sample.policy_versions)
        return Experience(
            samples=tuple(samples),
            rewards_N=torch.tensor(rewards, dtype=torch.float32, device=device),
            mask_NT=torch.from_numpy(mask_NT).to(device),
            behaviour_log_probs_NT=torch.from_numpy(log_probs_NT).to(device),
            staleness_NT=torch.from_numpy(staleness_NT * mask_NT).to(device),
        )

    @property
    def learnt_mask(self) -> Tensor:
        """As `mask_NT`, without answers that were not scored."""
        return self.mask_NT & ~self.rewards_N.isnan()[:, None]

    @property
    def last_token(self) -> Tensor:
        """True at the last sampled token of each answer, where its reward is given."""
        later_NT = self.mask_NT.flip(1).cumsum(1).flip(1)
        return self.mask_NT & (later_NT == 1)

    def metrics(self) -> dict[str, float]:
        """What the answers are like, before anything is learnt from them."""
        scored_M = self.rewards_N[~self.rewards_N.isnan()]
        lengths_N = self.mask_NT.sum(1).double()
        stale_N = self.staleness_NT.amax(1).double()
        cut = [sample.finish_reason is FinishReason.LENGTH for sample in self.samples]
        return {
            "reward": float(scored_M.mean()) if len(scored_M) else float("nan"),
            "reward_std": float(scored_M.std(unbiased=False)) if len(scored_M) else float("nan"),
            "unscored_answers": float(len(self.samples) - len(scored_M)),
            "answer_tokens": float(lengths_N.mean()),
            "answer_tokens_max": float(lengths_N.max()),
            "cut_share": sum(cut) / len(cut),
            "turns": sum(sample.num_turns for sample in self.samples) / len(self.samples),
            "staleness": float(stale_N.mean()),
            "staleness_max": float(stale_N.max()),
        }
