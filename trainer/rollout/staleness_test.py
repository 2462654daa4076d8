import dataclasses

import pytest

from finecut.trainer.rollout import staleness
from finecut.trainer.rollout.sample import FinishReason, Sample
from finecut.trainer.rollout.sampling import SamplingParameters


def sample(*versions):
    n = len(versions)
    return Sample(
        record_id=f"r{versions}",
        sample_index=0,
        seed=0,
        prompt_ids=(1,),
        answer_ids=(5,) * n,
        loss_mask=(True,) * n,
        log_probabilities=(-1.0,) * n,
        policy_versions=versions,
        weights=dict.fromkeys(versions, "w"),
        sampling=SamplingParameters(),
        finish_reason=FinishReason.STOP,
    )


@pytest.mark.parametrize("max_staleness", [0, 1, 3])
def test_batches_that_may_start_are_never_too_stale(max_staleness):
    """Engines that always begin the next batch as soon as they may, and get each version when it is trained."""
    begun = []
    for version in range(6):
        while staleness.may_start(len(begun), version, max_staleness):
            begun.append(version)
        staleness.check([sample(begun[version])], version, max_staleness)
        assert len(begun) == version + 1 + max_staleness  # as far ahead as allowed, and no further


def test_stale_samples_are_refused_by_their_oldest_token():
    with pytest.raises(
        staleness.StaleSamplesError, match=r"1 of 2 samples .* version 5 \(record r\(3, 5\) is 2 behind"
    ):
        staleness.check([sample(4, 5), sample(3, 5)], 5, 1)
    staleness.check([sample(4, 5), dataclasses.replace(sample(5), record_id="x")], 5, 1)
