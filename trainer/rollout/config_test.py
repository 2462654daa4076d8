import pytest
from google.protobuf import text_format

from finecut.proto import rollout_pb2
from finecut.proto.config import UserError
from finecut.trainer.rollout.config import MultiTurn, Placement, RolloutConfig

RESOLVED = """
    prompts_per_step: 64 max_new_tokens: 512 temperature: 0.7 top_p: 0.9 tensor_parallel_size: 1
    placement: COLOCATED max_staleness: 1 max_logprob_drift: 0.05
"""


def config(text=""):
    rollout = rollout_pb2.Rollout()
    text_format.Merge(RESOLVED, rollout)
    rollout.MergeFrom(text_format.Parse(text, rollout_pb2.Rollout()))
    return RolloutConfig.from_proto(rollout)


def test_fields_are_taken_over():
    found = config("top_k: 7 engine_count: 3 multi_turn { max_turns: 5 environment: 'a.b:C' }")
    assert found.sampling.temperature == 0.7 and found.sampling.top_k == 7
    assert found.engine_count == 3 and found.multi_turn == MultiTurn(5, "a.b:C")


def test_held_out_prompts_are_answered_greedily_unless_a_temperature_is_given():
    greedy = config("evaluation { every_steps: 5 }").evaluation
    sampled = config("evaluation { every_steps: 5 max_prompts: 9 temperature: 0.5 }").evaluation
    assert (
        greedy and greedy.sampling.top_k == 1 and greedy.max_prompts is None and greedy.sampling.max_new_tokens == 512
    )
    assert sampled and (sampled.sampling.temperature, sampled.sampling.top_k, sampled.max_prompts) == (0.5, None, 9)


def test_what_is_unset_stays_unset():
    found = config()
    assert found.sampling.top_k is None and found.engine_count is None and found.multi_turn is None


def test_engines_leave_memory_to_a_trainer_on_the_same_gpus():
    assert (config().placement, config().gpu_memory_fraction) == (Placement.COLOCATED, 0.5)
    assert config("placement: SPLIT").gpu_memory_fraction == 0.9
    assert config("placement: SPLIT gpu_memory_fraction: 0.3").gpu_memory_fraction == 0.3


def test_sampling_without_log_probabilities_is_refused():
    with pytest.raises(UserError, match=r"rollout\.temperature: 0 must be at least 0\.01"):
        config("temperature: 0")
