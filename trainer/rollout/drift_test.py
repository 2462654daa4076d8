import dataclasses

import pytest

from finecut.trainer.rollout import drift
from finecut.trainer.rollout.sample import FinishReason, Sample
from finecut.trainer.rollout.sampling import SamplingParameters

SAMPLE = Sample(
    record_id="record",
    sample_index=0,
    seed=0,
    prompt_ids=(1, 2),
    answer_ids=(3, 4, 5),
    loss_mask=(True, False, True),
    log_probabilities=(-1.0, 0.0, -2.0),
    policy_versions=(7, 7, 7),
    weights={7: "aa"},
    sampling=SamplingParameters(),
    finish_reason=FinishReason.STOP,
)


def test_only_sampled_tokens_count():
    found = drift.measure([SAMPLE], [(-1.1, -50.0, -2.3)], version=7)
    assert found.num_tokens == 2
    assert found.mean_difference == pytest.approx(0.2) and found.max_difference == pytest.approx(0.3)


def test_tokens_of_other_versions_are_left_out_and_counted():
    stale = dataclasses.replace(SAMPLE, policy_versions=(6, 6, 7), weights={6: "bb", 7: "aa"})
    found = drift.measure([stale, SAMPLE], [(-9.0, 0.0, -2.5), (-1.0, 0.0, -2.0)], version=7)
    assert (found.num_stale_tokens, found.num_tokens, found.max_difference) == (1, 3, 0.5)
    assert stale.oldest_version == 6 and stale.staleness(8) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_never_small(bad):
    with pytest.raises(drift.DriftError, match="differ by inf nats"):
        drift.check([SAMPLE], [(-1.0, 0.0, bad)], 7, 0.05, {}, {})


@pytest.mark.parametrize(
    "names, reason",
    [
        ([], "All weights are equal, so the engine computes differently"),
        (["model.layers.12.mlp.up_proj.weight"], "Weights differ in layer 12: model.layers.12.mlp.up_proj.weight"),
        ([f"model.layers.{i}.x" for i in range(9)], "layers 0, 1, 2, 3, 4 and 4 more: .* and 4 more"),
        (["lm_head.weight", "model.layers.3.x"], "layer 3 and the embedding, final norm or head"),
    ],
)
def test_the_error_says_where_to_look(names, reason):
    ours, theirs = dict.fromkeys(names, 1) | {"same": 5}, dict.fromkeys(names, 2) | {"same": 5}
    with pytest.raises(drift.DriftError, match=reason):
        drift.check([SAMPLE], [(-1.2, 0.0, -2.2)], 7, 0.05, ours, theirs)


def test_drift_within_the_limit_is_reported():
    assert drift.check([SAMPLE], [(-1.01, 0.0, -2.01)], 7, 0.05, {}, {}).mean_difference == pytest.approx(0.01)
