"""The tokens that the policy thought least likely come first, with what stood before them."""

import math

from finecut.trainer.rl import unlikely_tokens
from finecut.trainer.rl.testing import make_sample


def test_sampled_tokens_are_ranked_and_inserted_ones_left_out() -> None:
    samples = [make_sample(2, 3, inserted=(1,)), make_sample(3, 2)]
    found = unlikely_tokens.of_samples(samples, lambda ids: " ".join(map(str, ids)))
    # Log-probabilities are -0.5, -0.6, -0.7, ... by place.
    assert sorted(round(float(nats), 3) for nats in found.nats_N) == [0.5, 0.5, 0.6, 0.7]
    worst = found.worst[0]
    assert (round(worst.nats, 3), worst.token, worst.before) == (0.7, "122", "20 21 120 121")
    assert math.isclose(found.scalars()["token_loss/max"], 0.7, abs_tol=1e-6)
