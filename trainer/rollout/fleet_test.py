"""Two real engines as Ray actors: order, seeds, weights, and what happens when one of them dies."""

import os
import signal

import pytest
import torch
import transformers

from finecut.proto.config import UserError
from finecut.trainer.models.logits import load_decoder
from finecut.trainer.rollout import backends, engine_group, environment
from finecut.trainer.rollout.continuation import TurnRenderer
from finecut.trainer.rollout.engine_config import EngineDiedError, StaleWeightsError
from finecut.trainer.rollout.engine_group import Share
from finecut.trainer.rollout.engine_pool import FleetConfig
from finecut.trainer.rollout.episode import Prompt, Turns
from finecut.trainer.rollout.fleet import Fleet
from finecut.trainer.rollout.sampling import SamplingParameters
from finecut.trainer.rollout.testing import tiny_engine_config, write_tiny_policy
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import WeightSync

ENVIRONMENTS = "finecut.trainer.rollout.testing_environments"
SAMPLING = SamplingParameters(max_new_tokens=24, temperature=1.1, top_p=0.95)
PATIENCE_S = 900  # of a machine that does much else
LONG = SamplingParameters(max_new_tokens=200)
pytest_plugins = ["finecut.trainer.rl.testing_fixtures"]
PROMPTS = [Prompt(f"record-{n}", (1, 40 + n, 41, 42, 300, 7)) for n in range(5)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny_policy(tmp_path_factory.mktemp("model") / "policy")


@pytest.fixture(scope="module")
def policy(model):
    return load_decoder(model)


@pytest.fixture(scope="module")
def messages():
    return []


@pytest.fixture(scope="module")
def sent():
    """Versions that were sent again after a restart."""
    return []


@pytest.fixture(scope="module")
def fleet(cluster, model, policy, messages, sent):
    def resync(engines):
        sent.append(max(status.policy_version or 0 for status in fleet.status()))
        WeightSync(DecoderSource(policy, torch.float32), engines, backends.SHARED_MEMORY).send(sent[-1])

    config = FleetConfig(tiny_engine_config(model), num_engines=2, share=Share(cpus=1), max_restarts=1)
    fleet = Fleet(config, resync=resync, on_message=messages.append)
    yield fleet
    fleet.shut_down()


def answers(samples):
    """What has to be equal when a sample is drawn again; other neighbours in a batch change the last digits."""
    return [(s.record_id, s.sample_index, s.seed, s.answer_ids, s.finish_reason, s.weights) for s in samples]


def test_samples_come_in_order_with_seeds_of_their_own(fleet):
    samples = fleet.generate(PROMPTS, 3, SAMPLING, policy_version=0)
    order = [(sample.record_id, sample.sample_index) for sample in samples]
    assert order == [(prompt.record_id, index) for prompt in PROMPTS for index in range(3)]
    assert len({sample.seed for sample in samples}) == len(samples)
    assert {len(sample.weights) for sample in samples} == {1} and all(set(s.policy_versions) == {0} for s in samples)
    assert answers(fleet.generate(PROMPTS[::-1], 3, SAMPLING, 0)[-3:]) == answers(samples[:3])


def test_bad_input_is_said_plainly(fleet):
    with pytest.raises(UserError, match="an empty rollout"):
        fleet.generate([], 1, SAMPLING, 0)
    with pytest.raises(UserError, match="two prompts of one record"):
        fleet.generate([PROMPTS[0], PROMPTS[0]], 1, SAMPLING, 0)
    with pytest.raises(UserError, match=r"^1 of 6 prompts are too long: .* 256 tokens, .* record long has 250"):
        fleet.generate([*PROMPTS, Prompt("long", (5,) * 250)], 1, SAMPLING, 0)


def test_a_failure_takes_back_its_own_batch_only(fleet, model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    turns = Turns(environment.load(f"{ENVIRONMENTS}:failing"), TurnRenderer(tokenizer), 2, 256)
    good = fleet.begin(PROMPTS, 4, LONG, 0)
    with pytest.raises(UserError, match="environment cannot be made for record record-0: KeyError"):
        fleet.generate(PROMPTS, 1, SAMPLING, 0, turns)
    assert len(good.result(PATIENCE_S)) == 20


def test_a_colocated_fleet_sleeps_and_samples_only_after_a_sync(fleet, policy):
    fleet.sleep()
    assert all(status.is_asleep for status in fleet.status())
    with pytest.raises(StaleWeightsError, match="the engine is asleep"):
        fleet.generate(PROMPTS, 1, SAMPLING, 1)
    fleet.wake()
    with pytest.raises(StaleWeightsError, match="have not been synchronised since it slept"):
        fleet.generate(PROMPTS, 1, SAMPLING, 1)
    with torch.no_grad():
        policy.layers[0].mlp.down_proj.weight.mul_(1.5)
    checksums = WeightSync(DecoderSource(policy, torch.float32), fleet.engines, backends.SHARED_MEMORY).send(1)
    assert fleet.checksums() == [checksums, checksums]
    assert all(set(s.policy_versions) == {1} for s in fleet.generate(PROMPTS, 1, SAMPLING, 1))


def test_turns_end_in_the_order_of_prompts_too(fleet, model):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    turns = Turns(environment.load(f"{ENVIRONMENTS}:Insistent"), TurnRenderer(tokenizer), 2, 256)
    # Any token ends a turn, but only the template's own is followed by another.
    sampling = SamplingParameters(max_new_tokens=4, stop_token_ids=tuple(range(500)))
    prompts = [Prompt(prompt.record_id, prompt.token_ids, {"times": 3}) for prompt in PROMPTS]
    samples = fleet.generate(prompts, 2, sampling, 1, turns)
    assert [s.record_id for s in samples] == [p.record_id for p in prompts for _ in range(2)]
    assert all(len(s.answer_ids) == 1 and s.num_turns == 1 for s in samples if s.answer_ids[-1] != 4)


def test_a_killed_engine_comes_back_with_the_present_weights_and_its_samples_are_redone(fleet, messages, sent):
    expected = fleet.generate(PROMPTS, 4, LONG, 1)
    victim = fleet.status()[1].process_id
    batch = fleet.begin(PROMPTS, 4, LONG, 1)
    while not fleet.status()[1].outstanding_tokens:
        pass
    os.kill(victim, signal.SIGKILL)
    assert answers(batch.result(PATIENCE_S)) == answers(expected)
    status = fleet.status()
    assert status[1].process_id != victim and {one.policy_version for one in status} == {1} and sent == [1]
    [message] = messages
    assert message.startswith("rollout engine 1 died (its process crashed") and message.endswith("are redone")


def test_a_dead_engine_that_is_called_is_said_to_be_dead(fleet):
    os.kill(fleet.status()[0].process_id, signal.SIGKILL)
    with pytest.raises(EngineDiedError, match="crashed or was killed while it was called"):
        while True:  # it dies a moment after the signal
            fleet.wake()


def test_an_engine_that_died_idle_is_brought_back_before_anything_is_asked_of_it(fleet, sent):
    with pytest.raises(EngineDiedError, match=r"engine 0 died .* after 1 restarts"):
        fleet.heal(resync=True).result(PATIENCE_S)
    assert sent == [1] and fleet.num_restarts == 1


def test_the_fleet_gives_up_after_its_restarts(fleet):
    with pytest.raises(EngineDiedError, match=r"engine 0 died .* after 1 restarts"):
        fleet.generate(PROMPTS, 2, SAMPLING, 1)


def test_a_fleet_that_does_not_fit_is_refused(fleet):
    with pytest.raises(UserError, match=r"engine_count: 9 engines of 1 CPUs .* room for 2"):
        engine_group.reserve(9, Share(cpus=1), 1)
    with pytest.raises(UserError, match=r"tensor_parallel_size: 2\) do not fit: .* largest host has 0 GPUs"):
        engine_group.reserve(1, Share(cpus=1, gpus=2), 2)
