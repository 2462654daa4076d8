"""One real vLLM engine on a CPU core: what it samples, and the weights it samples with."""

import copy
import dataclasses

import pytest
import torch
import transformers

from finecut.dataprep.testing import TURN_END
from finecut.proto.config import UserError
from finecut.trainer.models.logits import load_decoder, packed_logits
from finecut.trainer.rollout import backends, checksums, drift, shared_memory
from finecut.trainer.rollout.continuation import TurnRenderer
from finecut.trainer.rollout.engine_config import Request, StaleWeightsError, WeightSyncError
from finecut.trainer.rollout.episode import Prompt, Turns, play
from finecut.trainer.rollout.sample import FinishReason, Sample
from finecut.trainer.rollout.sampling import SamplingParameters, restricted_log_probabilities
from finecut.trainer.rollout.testing import LocalEngine, tiny_engine_config, write_talkative_policy, write_tiny_policy
from finecut.trainer.rollout.testing_environments import Insistent
from finecut.trainer.rollout.weight_source import DecoderSource
from finecut.trainer.rollout.weight_sync import WeightSync

PLAIN = SamplingParameters(max_new_tokens=12)
PATIENCE_S = 900  # of a machine that does much else
PROMPT = (1, 40, 41, 42, 300, 7)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_policy(tmp_path_factory.mktemp("model") / "policy")


@pytest.fixture(scope="module")
def engine(folder):
    engine = LocalEngine(tiny_engine_config(folder))
    yield engine
    engine.shut_down()


@pytest.fixture()
def policy(folder):
    return load_decoder(folder)


@pytest.fixture(scope="module")
def sync_of(engine):
    return lambda policy: WeightSync(DecoderSource(policy, torch.float32), engine, backends.SHARED_MEMORY)


def generate(engine, sampling=PLAIN, prompt=PROMPT, seed=0, name="r"):
    return engine.run(engine.engine.generate(Request(name, prompt, sampling, seed)))


def trainer_log_probabilities(policy, prompt, answer, sampling):
    [logits] = packed_logits(policy, [torch.tensor(prompt + answer)])
    rows = logits[len(prompt) - 1 : -1]
    return restricted_log_probabilities(rows, torch.tensor(answer), sampling).tolist()


def as_sample(generation, sampling=PLAIN, prompt=PROMPT):
    return Sample(
        record_id="record",
        sample_index=0,
        seed=0,
        prompt_ids=prompt,
        answer_ids=generation.token_ids,
        loss_mask=(True,) * len(generation.token_ids),
        log_probabilities=generation.log_probabilities,
        policy_versions=generation.policy_versions,
        weights=generation.weights,
        sampling=sampling,
        finish_reason=generation.finish_reason,
    )


def perturbed(policy, layer=1, amount=0.5):
    policy = copy.deepcopy(policy)
    with torch.no_grad():
        policy.layers[layer].mlp.up_proj.weight.mul_(1 + amount)
    return policy


@pytest.mark.parametrize(
    "sampling",
    [
        PLAIN,
        dataclasses.replace(PLAIN, temperature=0.6),
        dataclasses.replace(PLAIN, temperature=1.7, top_p=0.8),
        dataclasses.replace(PLAIN, temperature=1.3, top_k=5),
        dataclasses.replace(PLAIN, temperature=1.5, top_p=0.7, top_k=20),
    ],
    ids=lambda s: f"t{s.temperature}-p{s.top_p}-k{s.top_k}",
)
def test_log_probabilities_are_the_trainers(engine, policy, sync_of, sampling):
    sync_of(policy).send(0)
    for seed in range(4):
        answer = generate(engine, sampling, seed=seed)
        ours = trainer_log_probabilities(policy, PROMPT, answer.token_ids, sampling)
        assert answer.log_probabilities == pytest.approx(ours, abs=1e-3)
        assert len(answer.token_ids) == sampling.max_new_tokens and answer.finish_reason is FinishReason.LENGTH


def test_equal_seeds_draw_equal_answers_and_others_do_not(engine, policy, sync_of):
    sync_of(policy).send(0)
    first, second, other = (generate(engine, seed=seed) for seed in (5, 5, 6))
    assert first == second and first.token_ids != other.token_ids


def test_an_answer_ends_with_its_stop_token(engine, policy, sync_of):
    sync_of(policy).send(0)
    free = generate(engine, seed=3)
    stop = free.token_ids[4]
    first = free.token_ids.index(stop)
    stopped = generate(engine, dataclasses.replace(PLAIN, stop_token_ids=(stop,)), seed=3)
    assert stopped.token_ids == free.token_ids[: first + 1] and stopped.finish_reason is FinishReason.STOP


def test_a_synchronised_engine_holds_the_trainers_weights_and_samples_from_them(engine, policy, sync_of):
    sync_of(policy).send(1)
    before = generate(engine, seed=1)
    changed = perturbed(policy)
    sent = sync_of(changed).send(2)
    assert engine.run(engine.engine.checksums()) == sent == DecoderSource(changed, torch.float32).checksums()
    after = generate(engine, seed=1)
    assert set(before.policy_versions) == {1} and set(after.policy_versions) == {2}
    assert after.weights == {2: checksums.digest(sent)} != before.weights
    ours = trainer_log_probabilities(changed, PROMPT, after.token_ids, PLAIN)
    assert after.log_probabilities == pytest.approx(ours, abs=1e-3)
    stale = trainer_log_probabilities(policy, PROMPT, after.token_ids, PLAIN)
    assert after.log_probabilities != pytest.approx(stale, abs=0.05)


def test_drift_names_the_layer_that_differs(engine, policy, sync_of):
    sync_of(perturbed(policy, layer=1)).send(3)
    sampling = dataclasses.replace(PLAIN, temperature=1.2)
    samples = [as_sample(generate(engine, sampling, seed=seed), sampling) for seed in range(3)]
    ours = [trainer_log_probabilities(policy, PROMPT, s.answer_ids, sampling) for s in samples]
    trainer_sums = DecoderSource(policy, torch.float32).checksums()
    engine_sums = engine.run(engine.engine.checksums())
    with pytest.raises(drift.DriftError, match=r"layer 1: model\.layers\.1\.mlp\.up_proj\.weight\. Synchronise"):
        drift.check(samples, ours, 3, 0.05, trainer_sums, engine_sums)
    sync_of(policy).send(4)
    samples = [as_sample(generate(engine, sampling, seed=seed), sampling) for seed in range(3)]
    ours = [trainer_log_probabilities(policy, PROMPT, s.answer_ids, sampling) for s in samples]
    found = drift.check(samples, ours, 4, 0.05, trainer_sums, engine.run(engine.engine.checksums()))
    assert found.num_tokens == 36 and found.mean_difference < 1e-4


def test_an_engine_that_slept_refuses_until_it_is_synchronised(engine, policy, sync_of):
    sync = sync_of(policy)
    before = sync.send(5)
    engine.run(engine.engine.sleep())
    with pytest.raises(StaleWeightsError, match="asleep"):
        generate(engine)
    with pytest.raises(StaleWeightsError, match="wake it first"):
        sync.send(6)
    engine.run(engine.engine.wake())
    assert engine.run(engine.engine.checksums()) != before
    with pytest.raises(StaleWeightsError, match="have not been synchronised"):
        generate(engine)
    assert engine.run(engine.engine.status()).policy_version is None
    sent = sync_of(policy).send(6)
    assert engine.run(engine.engine.checksums()) == sent
    ours = trainer_log_probabilities(policy, PROMPT, (answer := generate(engine)).token_ids, PLAIN)
    assert answer.log_probabilities == pytest.approx(ours, abs=1e-3)


def test_an_engine_that_missed_a_tensor_refuses_to_sample(engine, policy, sync_of):
    sync_of(policy).send(7)
    changed = copy.deepcopy(policy)
    with torch.no_grad():
        changed.layers[0].attention.k_proj.weight.add_(0.1)
    source = DecoderSource(changed, torch.float32)
    sent = [(name, tensor) for name, tensor in source if "layers.0.self_attn.k_proj" not in name]
    engine.call("start_weight_update")
    for bucket in shared_memory.fill_buckets(sent, 1 << 16):
        engine.call("update_weights", shared_memory.payload(bucket))
    with pytest.raises(WeightSyncError, match=r"version 8, .*model\.layers\.0\.self_attn\.k_proj\.weight"):
        engine.call("finish_weight_update", 8, source.checksums())
    with pytest.raises(StaleWeightsError):
        generate(engine)
    sync_of(policy).send(8)
    generate(engine)


def test_requests_in_flight_go_on_with_the_next_weights(engine, policy, sync_of):
    sync_of(policy).send(9)
    sampling = dataclasses.replace(PLAIN, max_new_tokens=200)
    changed = perturbed(policy)
    flying = engine.start(engine.engine.generate(Request("long", PROMPT, sampling, 1)))
    while engine.engine.num_sampled_tokens("long") < 3:
        pass
    sync_of(changed).send(10)
    answer = flying.result(PATIENCE_S)
    assert len(answer.token_ids) == 200 and set(answer.weights) == set(answer.policy_versions) == {9, 10}
    assert list(answer.policy_versions) == sorted(answer.policy_versions)
    models = {9: policy, 10: changed}
    for version, model in models.items():
        ours = trainer_log_probabilities(model, PROMPT, answer.token_ids, sampling)
        at = [i for i, v in enumerate(answer.policy_versions) if v == version]
        assert [answer.log_probabilities[i] for i in at] == pytest.approx([ours[i] for i in at], abs=1e-3)


def test_requests_can_be_taken_back(engine, policy, sync_of):
    sync_of(policy).send(11)
    long = dataclasses.replace(PLAIN, max_new_tokens=200)
    waiting = [engine.start(engine.engine.generate(Request(f"w{i}", PROMPT, long, i))) for i in range(3)]
    while engine.run(engine.engine.status()).outstanding_tokens < 3 * (len(PROMPT) + long.max_new_tokens):
        pass
    engine.run(engine.engine.abort(["w1"]))
    with pytest.raises(UserError, match="w1 was taken back"):
        waiting[1].result(PATIENCE_S)
    assert all(len(waiting[i].result(PATIENCE_S).token_ids) == 200 for i in (0, 2))


def test_turns_with_an_environment_keep_what_the_engine_sampled(engine, sync_of, folder, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    talker = load_decoder(write_talkative_policy(tmp_path / "talker"))
    sync_of(talker).send(12)
    turn_end = tokenizer.convert_tokens_to_ids(TURN_END)
    sampling = dataclasses.replace(PLAIN, max_new_tokens=40, stop_token_ids=(turn_end,))
    turns = Turns(Insistent, TurnRenderer(tokenizer), max_turns=3, max_sequence_tokens=256)
    prompt = Prompt("record", PROMPT, {"times": 5})
    sample = engine.run(play(prompt, 0, 7, sampling, engine.engine.generate, turns))
    assert sample.num_turns == 3 and sample.finish_reason is FinishReason.MAX_TURNS
    ours = trainer_log_probabilities(talker, PROMPT, sample.answer_ids, sampling)
    assert drift.check([sample], [ours], 12, 1e-3, {}, {}).num_tokens == sample.num_sampled_tokens
    inserted = [token for token, sampled in zip(sample.answer_ids, sample.loss_mask, strict=True) if not sampled]
    said = tokenizer.decode(inserted, skip_special_tokens=True)
    assert "Go on, 4 more." in said and "Go on, 3 more." in said and "2 more" not in said


def test_prompts_that_are_too_long_or_empty_are_refused(engine):
    with pytest.raises(UserError, match=r"a prompt of 250 tokens and an answer of up to 12 .* longer than the 256"):
        generate(engine, prompt=(5,) * 250)
    with pytest.raises(UserError, match="the prompt is empty"):
        generate(engine, prompt=())
