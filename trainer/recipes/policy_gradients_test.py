"""What GRPO and PPO make of scored answers, down to gradients, against `transformers` in float64 and the papers.

Answers of unlike lengths, one with tokens that an environment wrote, packed together; ratios on both sides of the clip.
"""

import dataclasses
import statistics
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor

from finecut.trainer.models.architecture import OutputHead
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.models.sharding import named_parameters
from finecut.trainer.parallel.process_group import Devices
from finecut.trainer.recipes import grpo, ppo
from finecut.trainer.rl import reinforcement, rows, testing, token_scores
from finecut.trainer.rl.config import GrpoConfig, PpoConfig
from finecut.trainer.rl.experience import Experience
from finecut.trainer.rl.judging import Judged
from finecut.trainer.rl.policy_objective import ValueObjective, ValueTargets
from finecut.trainer.rollout.sample import Sample
from finecut.trainer.testing import write_tiny_llama

DEVICES = Devices(0, 1, torch.device("cpu"), mesh=None)  # type: ignore[arg-type]  # no collective is called
REWARDS = [1.0, 0.0, 0.25, 2.0]
ANSWERS = [(3, 5, ()), (2, 7, (2, 3)), (6, 6, ()), (4, 3, ())]  # tokens of prompt and answer, places not sampled
TEMPERATURE, KL = 0.8, 0.1
COMMON = 'rewards { regular_expression: "z" } kl { coefficient: 0.1 place: IN_LOSS }'
# Our names and those of `transformers`.
PARAMETERS = {
    "embedding.weight": "model.embed_tokens.weight",
    "layers.0.attention.q_proj.weight": "model.layers.0.self_attn.q_proj.weight",
    "layers.1.mlp.up_proj.weight": "model.layers.1.mlp.up_proj.weight",
    "head.weight": "lm_head.weight",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("model", "reference", "critic")):
        write_tiny_llama(folder / name, seed=seed, initializer_range=0.1)
    testing.write_prompts(folder / "data", folder / "model", 4, 6)
    return folder


@pytest.fixture(scope="module")
def policy(root: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(root / "model", dtype=torch.float64)


def log_probs(model: Any, sample: Sample) -> Tensor:
    """[T] of the answer's tokens."""
    ids = torch.tensor([sample.prompt_ids + sample.answer_ids])
    log_p_TV = (model(ids).logits[0, len(sample.prompt_ids) - 1 : -1] / TEMPERATURE).log_softmax(-1)
    return log_p_TV.gather(1, torch.tensor(sample.answer_ids)[:, None])[:, 0]


def sampled(sample: Sample) -> list[int]:
    return [t for t, is_sampled in enumerate(sample.loss_mask) if is_sampled]


@pytest.fixture(scope="module")
def samples(policy: Any) -> list[Sample]:
    """Drawn by a policy a little different from the present one."""
    noise, found = torch.Generator().manual_seed(0), []
    for n, (num_prompt, num_answer, inserted) in enumerate(ANSWERS):
        sample = dataclasses.replace(testing.make_sample(num_prompt, num_answer, inserted), sample_index=n)
        with torch.no_grad():
            old_T = log_probs(policy, sample) + 0.3 * torch.randn(num_answer, generator=noise, dtype=torch.float64)
        kept = (old if ok else 0.0 for old, ok in zip(old_T.tolist(), sample.loss_mask, strict=True))
        found.append(dataclasses.replace(sample, log_probabilities=tuple(kept)))
    return found


def judged_by(root: Path, samples: list[Sample], config: Any) -> tuple[Any, Judged, Tensor, Any]:
    """Our policy, the batch as its recipe has it, the reference's log-probabilities, and a session of `config`."""
    model, sampling = load_decoder(root / "model"), config.rollout.sampling
    experience = Experience.of(samples, REWARDS, 0, torch.device("cpu"))
    batches = rows.micro_batches(samples, range(4), 32, 2, DEVICES)
    judged = Judged(cast(Any, None), experience, batches, {})
    judged.log_probs_NT = token_scores.log_probabilities(model, batches, experience.mask_NT, sampling, DEVICES)
    reference = load_decoder(root / "reference")
    reference_NT = token_scores.log_probabilities(reference, batches, experience.mask_NT, sampling, DEVICES)
    return model, judged, reference_NT, SimpleNamespace(setup=SimpleNamespace(config=config))


def mean_loss(model: Any, batches: list[Any], objective: Any) -> Tensor:
    losses = [objective.losses(model, batch, 1.0).loss for batch in batches]
    return torch.stack(losses).sum() / sum(objective.num_units(batch) for batch in batches)


def check(model: Any, loss: Tensor, expected_model: Any, expected: Tensor, names: dict[str, str]) -> None:
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    loss.backward()
    expected.backward()
    ours, theirs = dict(named_parameters(model)), dict(expected_model.named_parameters())
    for our_name, their_name in names.items():
        want = theirs[their_name].grad
        found = ours[our_name].grad[: want.shape[0]].double()
        assert (found - want).abs().max() < 5e-5 * want.abs().max(), our_name


def clipped_gain(log_p: Tensor, old: float, advantage: float, low: float, high: float) -> Tensor:
    ratio = (log_p - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)


def fresh(root: Path, name: str) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(root / name, dtype=torch.float64)


@pytest.mark.parametrize("variant", ["GRPO", "Dr. GRPO", "DAPO"])
def test_grpo_is_equation_3_of_deepseekmath_and_its_variants_theirs(
    root: Path, samples: list[Sample], variant: str
) -> None:
    fields = {
        "GRPO": "",
        "Dr. GRPO": "scale_by_std: false aggregation: CONSTANT_LENGTH",
        "DAPO": "clip_high: 0.28 aggregation: TOKEN_MEAN",
    }[variant]
    rollout = f"temperature: {TEMPERATURE}"
    job = testing.tiny_job(root, "grpo", f"{COMMON} group_size: 2 {fields}", rollout=rollout)
    config = GrpoConfig.from_proto(job.stages[0].grpo)
    model, judged, reference_NT, session = judged_by(root, samples, config)
    advantages_NT = grpo.advantages_of(judged, reference_NT, KL, config)
    objective = reinforcement.policy_objective(session, judged, advantages_NT, reference_NT, KL, step=1)

    policy, reference, terms = fresh(root, "model"), fresh(root, "reference"), []
    num_tokens = sum(len(sampled(sample)) for sample in samples)
    for n, sample in enumerate(samples):
        group = REWARDS[n - n % 2 : n - n % 2 + 2]
        advantage = REWARDS[n] - statistics.mean(group)
        advantage /= 1 if variant == "Dr. GRPO" else statistics.stdev(group) + 1e-6
        weight = {
            "GRPO": 1 / len(sampled(sample)) / len(samples),
            "Dr. GRPO": 1 / config.rollout.sampling.max_new_tokens / len(samples),
            "DAPO": 1 / num_tokens,
        }[variant]
        log_p_T, towards_T = log_probs(policy, sample), log_probs(reference, sample).detach()
        for t in sampled(sample):
            gain = clipped_gain(log_p_T[t], sample.log_probabilities[t], advantage, 0.2, config.update.clip_high)
            apart = towards_T[t] - log_p_T[t]
            terms.append(weight * (KL * (apart.exp() - apart - 1) - gain))
    loss = mean_loss(model, judged.batches, objective)
    check(model, loss, policy, torch.stack(terms).sum(), PARAMETERS)


def test_ppo_is_the_clipped_objective_on_generalised_advantages_and_its_critic_the_clipped_square(
    root: Path, samples: list[Sample]
) -> None:
    gamma, lam = 0.97, 0.9
    fields = f'rewards {{ regular_expression: "z" }} gamma: {gamma} gae_lambda: {lam} kl {{ coefficient: {KL} }}'
    job = testing.tiny_job(root, "ppo", fields, rollout=f"temperature: {TEMPERATURE}")
    config = PpoConfig.from_proto(job.stages[0].ppo)
    model, judged, reference_NT, session = judged_by(root, samples, config)
    critic = load_decoder(root / "critic", output_head=OutputHead(1, initial_std=0.5))
    mask_NT = judged.experience.mask_NT
    values_NT = token_scores.values(critic, judged.batches, mask_NT, DEVICES)
    rewards_NT = ppo.token_rewards(judged, reference_NT, KL, config)
    advantages_NT, returns_NT = ppo.estimate(judged, rewards_NT, values_NT, config)
    objective = reinforcement.policy_objective(session, judged, advantages_NT, reference_NT, KL, step=1)
    shift_NT = 0.3 * torch.randn(mask_NT.shape, generator=torch.Generator().manual_seed(1))
    old_NT = values_NT + shift_NT  # as if the critic had moved since, on both sides of its clip
    value_objective = ValueObjective(ValueTargets(old_NT, returns_NT, mask_NT), config.value_clip)

    policy, reference = fresh(root, "model"), fresh(root, "reference")
    body = transformers.AutoModel.from_pretrained(root / "critic", dtype=torch.float64)
    head = dict(named_parameters(critic))["score.weight"].detach().double()[0]
    tokens, squares = [], []
    for n, sample in enumerate(samples):
        ids = torch.tensor([sample.prompt_ids + sample.answer_ids])
        value_T = (body(ids).last_hidden_state[0] @ head)[len(sample.prompt_ids) - 1 : -1]
        log_p_T, towards_T = log_probs(policy, sample), log_probs(reference, sample).detach()
        next_value = advantage = 0.0
        for t in reversed(sampled(sample)):
            old, value = sample.log_probabilities[t], float(value_T[t])
            reward = (REWARDS[n] if t == sampled(sample)[-1] else 0.0) - KL * (old - float(towards_T[t]))
            advantage = reward + gamma * next_value - value + gamma * lam * advantage
            next_value = value
            tokens.append((log_p_T[t], old, advantage))
            was, gone = value + float(shift_NT[n, t]), value_T[t] - (value + advantage)
            near = value_T[t].clamp(was - 0.2, was + 0.2) - (value + advantage)
            squares.append(torch.maximum(gone**2, near**2) / 2)
    mean = statistics.mean(advantage for *_, advantage in tokens)
    deviation = statistics.pstdev([advantage for *_, advantage in tokens])
    gains = [clipped_gain(log_p, old, (a - mean) / deviation, 0.2, 0.2) for log_p, old, a in tokens]
    check(model, mean_loss(model, judged.batches, objective), policy, -torch.stack(gains).mean(), PARAMETERS)

    names = {ours: theirs.removeprefix("model.") for ours, theirs in PARAMETERS.items() if "head" not in ours}
    check(critic, mean_loss(critic, judged.batches, value_objective), body, torch.stack(squares).mean(), names)
