"""Every family's weights reach an engine whole: log-probabilities and checksums are the trainer's before and after."""

import copy

import pytest
import torch

from finecut.proto.config import UserError
from finecut.trainer.models.logits import load_decoder, packed_logits
from finecut.trainer.rollout import backends
from finecut.trainer.rollout.engine_config import Request
from finecut.trainer.rollout.sampling import SamplingParameters, restricted_log_probabilities
from finecut.trainer.rollout.testing import LocalEngine, tiny_engine_config, write_tiny_policy
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import WeightSync

SAMPLING = SamplingParameters(max_new_tokens=24, temperature=1.3)
PROMPT = (1, *range(40, 75))

# vLLM knows neither a head size of Qwen2's own nor a sliding window in some of its layers.
FIELDS = {
    "qwen2": {"head_dim": None, "num_attention_heads": 2, "num_key_value_heads": 1, "use_sliding_window": False},
}


def scrambled(policy):
    """Another policy: each tensor is changed."""
    policy, generator = copy.deepcopy(policy), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        for name in ("embedding", "head"):
            if hasattr(policy, name):
                getattr(policy, name).weight[policy.config.vocabulary_size :] = 0
    return policy


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3_text", "mistral"])
def test_weights_reach_the_engine_whole(family, tmp_path):
    folder = write_tiny_policy(tmp_path / "model", family, **FIELDS.get(family, {}))
    policy = load_decoder(folder)
    engine = LocalEngine(tiny_engine_config(folder))
    try:
        check(engine, policy, DecoderSource(policy, torch.float32).checksums())
        changed = scrambled(policy)
        check(
            engine, changed, WeightSync(DecoderSource(changed, torch.float32), engine, backends.SHARED_MEMORY).send(1)
        )
    finally:
        engine.shut_down()


def test_a_mixture_of_experts_is_refused(tmp_path):
    policy = load_decoder(write_tiny_policy(tmp_path / "model", "qwen3_moe"))
    with pytest.raises(UserError, match="rollouts of a mixture of experts are not in this version"):
        WeightSync(DecoderSource(policy, torch.float32), None, backends.SHARED_MEMORY)


def check(engine, policy, checksums):
    assert engine.run(engine.engine.checksums()) == checksums
    answer = engine.run(engine.engine.generate(Request("r", PROMPT, SAMPLING, 3)))
    [logits] = packed_logits(policy, [torch.tensor(PROMPT + answer.token_ids)])
    ours = restricted_log_probabilities(logits[len(PROMPT) - 1 : -1], torch.tensor(answer.token_ids), SAMPLING)
    assert answer.log_probabilities == pytest.approx(ours.tolist(), abs=1e-3)
