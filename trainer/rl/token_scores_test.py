"""Log-probabilities, entropies and losses of packed answers, against plain FP64 sums over whole logits."""

import pytest
import torch
from torch import Tensor

from finecut.trainer.models.logits import load_decoder
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes.documents import inputs_of
from finecut.trainer.rl import rows, token_scores
from finecut.trainer.rl.config import UpdateConfig
from finecut.trainer.rl.policy_loss import Aggregation
from finecut.trainer.rl.policy_objective import PolicyObjective, PolicyTargets
from finecut.trainer.rl.testing import make_sample
from finecut.trainer.rl.token_scores import LogProbabilitiesAndEntropies, SampledLogProbabilities, ScoreBuffer
from finecut.trainer.rollout.sampling import SamplingParameters
from finecut.trainer.testing import write_tiny_llama

SAMPLES = [make_sample(3, 5), make_sample(2, 7, inserted=(2, 3)), make_sample(6, 6)]
SHAPE = (3, 7)
DEVICES = Devices(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]  # no collective is called


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_decoder(write_tiny_llama(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture(scope="module")
def batch():
    [found] = rows.micro_batches(SAMPLES, range(3), 64, 1, DEVICES)
    return found


def mask() -> Tensor:
    return torch.tensor([list(s.loss_mask) + [False] * (7 - len(s.loss_mask)) for s in SAMPLES])


def distributions(model, sampling: SamplingParameters) -> list[Tensor]:
    """[T, V] of each sample in FP64: one document at a time, tokens left out by sorting."""
    found = []
    for sample in SAMPLES:
        ids = torch.tensor([sample.prompt_ids + sample.answer_ids])
        hidden = model(ids, torch.arange(ids.shape[1])[None], torch.zeros_like(ids))
        logits = model.logits(hidden)[0, len(sample.prompt_ids) - 1 : -1].double() / sampling.temperature
        likely = logits
        if sampling.top_k is not None:
            likely = logits.masked_fill(logits < logits.topk(sampling.top_k).values[:, -1:], -torch.inf)
        probabilities, order = likely.softmax(-1).sort(descending=True)
        kept = probabilities.cumsum(-1) - probabilities < sampling.top_p
        allowed = torch.zeros_like(kept).scatter(-1, order, kept) & likely.isfinite()
        allowed = allowed.scatter(-1, torch.tensor(sample.answer_ids)[:, None], True)
        found.append(logits.masked_fill(~allowed, -torch.inf).log_softmax(-1))
    return found


CASES = [
    SamplingParameters(),
    SamplingParameters(temperature=0.6),
    SamplingParameters(temperature=1.3, top_p=0.8),
    SamplingParameters(top_k=20, top_p=0.9),
]


@pytest.mark.parametrize("sampling", CASES)
@torch.no_grad()
def test_log_probabilities_and_entropies_are_those_of_the_distribution_sampled_from(model, batch, sampling) -> None:
    log_probs_NT, entropies_NT = torch.zeros(2, *SHAPE)
    found_2T = model(*inputs_of(batch), read_out=LogProbabilitiesAndEntropies(batch.targets_BL, sampling))
    batch.put_back(found_2T[0], log_probs_NT)
    batch.put_back(found_2T[1], entropies_NT)
    alone_NT = torch.zeros(SHAPE)
    batch.put_back(model(*inputs_of(batch), read_out=SampledLogProbabilities(batch.targets_BL, sampling)), alone_NT)
    torch.testing.assert_close(alone_NT, log_probs_NT, atol=1e-5, rtol=1e-5)
    for n, (sample, expected_TV) in enumerate(zip(SAMPLES, distributions(model, sampling), strict=True)):
        for t, token in enumerate(sample.answer_ids):
            if sample.loss_mask[t]:
                log_p_V = expected_TV[t]
                assert log_probs_NT[n, t] == pytest.approx(float(log_p_V[token]), abs=1e-4)
                assert entropies_NT[n, t] == pytest.approx(
                    float(-(log_p_V.exp() * log_p_V.nan_to_num(neginf=0)).sum()), abs=1e-3
                )
            else:
                assert log_probs_NT[n, t] == 0


@pytest.mark.parametrize("aggregation", list(Aggregation))
@pytest.mark.parametrize("sampling", [CASES[1], CASES[2]])
def test_the_loss_and_its_gradient_are_those_of_the_papers(model, batch, sampling, aggregation) -> None:
    generator = torch.Generator().manual_seed(3)
    old, reference, advantages = torch.randn(3, *SHAPE, generator=generator)
    with torch.no_grad():
        now = torch.zeros(SHAPE)
        batch.put_back(model(*inputs_of(batch), read_out=SampledLogProbabilities(batch.targets_BL, sampling)), now)
    old, reference = now + 0.3 * old, now + 0.5 * reference  # ratios on both sides of the clip
    config = UpdateConfig(0.2, 0.28, 1, 1, aggregation, 2.0, kl=None)
    weights = {
        Aggregation.TOKEN_MEAN: mask().float(),
        Aggregation.SEQUENCE_MEAN: mask() / mask().sum(1, keepdim=True),
        Aggregation.CONSTANT_LENGTH: mask() / 512,
    }[aggregation]
    nothing_stale = torch.zeros(SHAPE, dtype=torch.int64)
    targets = PolicyTargets(old, nothing_stale, advantages, weights, None, reference)
    objective = PolicyObjective(config, sampling, targets, kl_coefficient=0.1)
    losses = objective.losses(model, batch, 1.0)
    parameter = model.layers[0].mlp.down_proj.weight
    [gradient] = torch.autograd.grad(losses.loss, [parameter])

    expected = torch.zeros((), dtype=torch.float64)
    for n, (sample, log_p_TV) in enumerate(zip(SAMPLES, distributions(model, sampling), strict=True)):
        sampled = [t for t, is_sampled in enumerate(sample.loss_mask) if is_sampled]
        scale = {
            Aggregation.TOKEN_MEAN: 1.0,
            Aggregation.SEQUENCE_MEAN: 1 / len(sampled),
            Aggregation.CONSTANT_LENGTH: 1 / 512,
        }[aggregation]
        for t in sampled:
            log_p = log_p_TV[t, sample.answer_ids[t]]
            ratio, a = (log_p - old[n, t].double()).exp(), advantages[n, t].double()
            gain = torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a)
            towards = reference[n, t].double() - log_p
            expected = expected + scale * (0.1 * (towards.exp() - towards - 1) - gain)
    [expected_gradient] = torch.autograd.grad(expected, [parameter])
    assert float(losses.loss) == pytest.approx(float(expected), rel=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=2e-3, atol=2e-4 * float(gradient.abs().max()))
    units = objective.num_units(batch)
    assert units == (mask().sum() if aggregation is Aggregation.TOKEN_MEAN else 3)
    metrics = objective.metrics({name: value.double() for name, value in losses.sums.items()}, units)
    assert 0 < metrics["clip_share"] < 1 and metrics["kl_loss"] > 0


@pytest.mark.parametrize("sampling", [CASES[1], CASES[3]])
def test_the_only_pass_learns_what_a_scoring_pass_before_it_would_have_taught(model, batch, sampling) -> None:
    """With tokens of an older policy among them: the same loss, gradients, log-probabilities and entropies."""
    generator = torch.Generator().manual_seed(5)
    behaviour, advantages = torch.randn(2, *SHAPE, generator=generator)
    staleness = torch.randint(0, 2, SHAPE, generator=generator)
    scored = token_scores.log_probabilities_and_entropies(model, [batch], mask(), sampling, DEVICES)
    behaviour = scored[0] + 0.3 * behaviour
    config = UpdateConfig(0.2, 0.28, 1, 1, Aggregation.TOKEN_MEAN, 1.2, kl=None)
    parameters = [model.layers[0].mlp.down_proj.weight, model.head_weight()]

    class Kept:
        def __init__(self) -> None:
            self.buffer, self.is_done = ScoreBuffer(mask(), DEVICES), False

        def put(self, batch, found_2T) -> None:
            self.buffer.put(batch, found_2T)

        def done(self) -> None:
            self.is_done = True

    kept = Kept()
    found = []
    for known, first_pass in ((scored[0], None), (None, kept)):
        targets = PolicyTargets(behaviour, staleness, advantages, mask().float(), known)
        objective = PolicyObjective(config, sampling, targets, first_pass=first_pass)
        losses = objective.losses(model, batch, 1.0)
        gradients = torch.autograd.grad(losses.loss, parameters)
        objective.step_done(1)
        found.append([losses.loss, *gradients, *(losses.sums[name] for name in ("clipped", "ratio", "step_kl"))])
    assert kept.is_done and float(found[0][3]) > 0
    for two_passes, one_pass in zip(*found, strict=True):
        torch.testing.assert_close(one_pass, two_passes, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(kept.buffer.gathered(), scored, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_values_come_from_the_position_before_the_token(model, batch) -> None:
    class Critic(torch.nn.Module):
        def forward(self, ids, positions, documents):
            return positions.float()

    found_NT = token_scores.values(Critic(), [batch], mask(), DEVICES)  # type: ignore[arg-type]
    for n, sample in enumerate(SAMPLES):
        expected = [len(sample.prompt_ids) + t - 1 if ok else 0 for t, ok in enumerate(sample.loss_mask)]
        assert found_NT[n, : len(expected)].tolist() == expected
