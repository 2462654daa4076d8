import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.proto.config import UserError
from finecut.trainer.rollout.sampling import SamplingParameters, restricted_log_probabilities, sample_seed


def by_hand(logits, sampling):
    """Probabilities of one row, from the definitions: temperature, then top-k, then the smallest set of mass top-p."""
    probabilities = (torch.tensor(logits, dtype=torch.float64) / sampling.temperature).softmax(0).tolist()
    order = sorted(range(len(logits)), key=lambda i: -probabilities[i])
    kept = order[: sampling.top_k or len(order)]
    mass = sum(probabilities[i] for i in kept)
    nucleus, reached = [], 0.0
    for i in kept:
        if reached >= sampling.top_p * mass:
            break
        nucleus.append(i)
        reached += probabilities[i]
    total = sum(probabilities[i] for i in nucleus)
    return {i: probabilities[i] / total for i in nucleus}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.3, 1.0, 2.0]),
    st.sampled_from([0.35, 0.7, 0.93, 1.0]),
    st.sampled_from([None, 1, 3, 50]),
)
def test_log_probabilities_are_those_of_the_definition(numbers, temperature, top_p, top_k):
    logits = [number / 7 for number in numbers]
    sampling = SamplingParameters(temperature=temperature, top_p=top_p, top_k=top_k)
    expected = by_hand(logits, sampling)
    tokens = torch.tensor(sorted(expected))
    found = restricted_log_probabilities(torch.tensor([logits] * len(tokens)), tokens, sampling)
    for token, value in zip(tokens.tolist(), found.exp().tolist(), strict=True):
        assert value == pytest.approx(expected[token], rel=1e-4)


def test_a_token_that_rounding_left_out_keeps_a_finite_log_probability_and_gradient():
    logits = torch.tensor([[5.0, 1.0, 0.0]], requires_grad=True)
    found = restricted_log_probabilities(logits, torch.tensor([2]), SamplingParameters(top_k=1))
    found.sum().backward()
    assert found.isfinite().all() and logits.grad.isfinite().all() and logits.grad[0, 2] > 0


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"temperature": 0.0}, "greedy answers have no"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p: 0 must be greater than 0"),
        ({"top_k": 0}, "top_k: 0 must be at least 1"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0 must be at least 1"),
    ],
)
def test_refuses_sampling_without_exact_log_probabilities(fields, reason):
    with pytest.raises(UserError, match=reason):
        SamplingParameters(**fields)


def test_every_sample_has_a_seed_of_its_own():
    seeds = [sample_seed(*parts) for parts in itertools.product((0, 1), (0, 1, 2), ("a", "b"), range(3))]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, 2, "a", 0) == sample_seed(1, 2, "a", 0)
