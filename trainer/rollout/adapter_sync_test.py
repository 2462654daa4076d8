"""Adapters sent alone, to a real engine with a tied head."""

import copy
import dataclasses

import pytest
import torch

from finecut.proto.config import UserError
from finecut.trainer.models.logits import load_decoder, packed_logits
from finecut.trainer.models.lora import LoraConfig, lora_layers
from finecut.trainer.rollout import backends
from finecut.trainer.rollout.engine_config import Request, StaleWeightsError, WeightSyncError
from finecut.trainer.rollout.sampling import SamplingParameters, restricted_log_probabilities
from finecut.trainer.rollout.testing import LocalEngine, tiny_engine_config, write_tiny_policy
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import WeightSync

SAMPLING = SamplingParameters(max_new_tokens=16, temperature=1.2, top_p=0.9)
PROMPT = (1, 40, 41, 42, 300, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_policy(tmp_path_factory.mktemp("model") / "policy", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def engine(folder):
    engine = LocalEngine(tiny_engine_config(folder, adapter_rank=4))
    yield engine
    engine.shut_down()


@pytest.fixture(scope="module")
def policy(folder):
    return trained(load_decoder(folder, lora=LoraConfig(rank=4, alpha=8)), seed=0)


def trained(policy, seed):
    """Another policy, with adapters that do something."""
    policy, generator = copy.deepcopy(policy), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, layer in lora_layers(policy):
            layer.lora_b.normal_(std=0.1, generator=generator)
    return policy


def sync_of(engine, policy, merge=False):
    return WeightSync(DecoderSource(policy, torch.float32, merge_adapters=merge), engine, backends.SHARED_MEMORY)


def base_checksums(policy):
    return DecoderSource(policy, torch.float32, merge_adapters=False).checksums()


def check_samples_from(engine, policy, version):
    answer = engine.run(engine.engine.generate(Request(f"v{version}", PROMPT, SAMPLING, version)))
    [logits] = packed_logits(policy, [torch.tensor(PROMPT + answer.token_ids)])
    ours = restricted_log_probabilities(logits[len(PROMPT) - 1 : -1], torch.tensor(answer.token_ids), SAMPLING)
    assert answer.log_probabilities == pytest.approx(ours.tolist(), abs=1e-3)
    assert set(answer.policy_versions) == {version} and set(answer.weights) == {version}
    return answer


def test_an_adapter_is_sampled_with_and_the_base_stays(engine, policy):
    sent = sync_of(engine, policy).send_adapter(1, base_checksums(policy))
    check_samples_from(engine, policy, 1)
    assert engine.run(engine.engine.checksums()) == base_checksums(policy)
    assert len(sent) > len(base_checksums(policy)) and any("lora_A" in name for name in sent)


def test_requests_in_flight_keep_their_adapter(engine, policy):
    other = trained(policy, seed=1)
    sync_of(engine, policy).send_adapter(2, base_checksums(policy))
    long = dataclasses.replace(SAMPLING, max_new_tokens=200)
    flying = engine.start(engine.engine.generate(Request("long", PROMPT, long, 1)))
    while engine.engine.num_sampled_tokens("long") < 3:
        pass
    with pytest.raises(UserError, match="requests in flight use an adapter"):
        sync_of(engine, policy).send(3)
    sync_of(engine, other).send_adapter(3, base_checksums(policy))
    check_samples_from(engine, other, 3)
    assert set(flying.result(900).policy_versions) == {2}


def test_merged_weights_replace_base_and_adapter(engine, policy):
    sync_of(engine, policy).send_adapter(4, base_checksums(policy))
    merged = sync_of(engine, policy, merge=True).send(5)
    assert engine.run(engine.engine.checksums()) == merged != base_checksums(policy)
    check_samples_from(engine, policy, 5)
    with pytest.raises(WeightSyncError, match=r"version 6 was sent as an adapter, but 14 tensors .* send all weights"):
        sync_of(engine, policy).send_adapter(6, base_checksums(policy))
    with pytest.raises(StaleWeightsError):
        check_samples_from(engine, policy, 6)
    sync_of(engine, policy).send(6)
    sync_of(engine, policy).send_adapter(7, base_checksums(policy))
    check_samples_from(engine, policy, 7)


def test_after_sleep_an_adapter_is_sent_again_before_anything_is_sampled(engine, policy):
    engine.run(engine.engine.sleep())
    with pytest.raises(StaleWeightsError, match="wake it first"):
        sync_of(engine, policy).send_adapter(8, base_checksums(policy))
    engine.run(engine.engine.wake())
    with pytest.raises(StaleWeightsError, match="have not been synchronised"):
        check_samples_from(engine, policy, 8)
    sync_of(engine, policy).send_adapter(8, base_checksums(policy))
    check_samples_from(engine, policy, 8)


def test_many_versions_can_follow_each_other(engine, policy):
    for version in range(9, 20):
        adapted = trained(policy, seed=version)
        sync_of(engine, adapted).send_adapter(version, base_checksums(policy))
        check_samples_from(engine, adapted, version)
