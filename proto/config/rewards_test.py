"""Rules of rewards."""

import pytest
from google.protobuf import text_format

from finecut.proto import job_pb2
from finecut.proto.config import rewards

JOB = """
    stages {{ name: "prepare" data_prep {{ sources {{ prompt {{ {prompt} }} }} }} }}
    stages {{ name: "grpo" grpo {{ data: "{data}" {rewards} rollout {{ max_new_tokens: 16 {rollout} }} }} }}
"""


def problems(text: str, prompt: str = "", data: str = "@prepare", rollout: str = "") -> dict[str, str]:
    job = text_format.Parse(JOB.format(rewards=text, prompt=prompt, data=data, rollout=rollout), job_pb2.JobConfig())
    return {problem.path.removeprefix("stages[1].grpo."): problem.message for problem in rewards.check(job)}


def test_a_mix_of_rewards_with_names_of_their_own_is_fine() -> None:
    mix = 'rewards { numeric {} } rewards { name: "close" numeric { relative_tolerance: 0.1 } } rewards { model: "@x" }'
    assert not problems(mix, 'reference_field: "answer"')


@pytest.mark.parametrize(
    ("first", "second"),
    [("numeric {}", "numeric {}"), ('name: "numeric" exact_match {}', "numeric {}")],
)
def test_two_rewards_of_one_name_are_refused(first: str, second: str) -> None:
    found = problems(f"rewards {{ {first} }} rewards {{ {second} }}", 'reference_field: "answer"')
    assert found == {"rewards[1].name": 'rewards[0] has the name "numeric" too; give one of them another name'}


def test_what_is_no_expression_is_refused() -> None:
    (message,) = problems('rewards { regular_expression: "(" }').values()
    assert '"(" is no regular expression: missing )' in message


@pytest.mark.parametrize("kind", ["numeric", "exact_match"])
def test_verifiers_need_a_reference_of_the_data_prepared_here(kind: str) -> None:
    reward = f"rewards {{ {kind} {{}} }}"
    assert "sources[0] of @prepare has none" in problems(reward)[f"rewards[0].{kind}"]
    assert not problems(reward, data="/prepared")
    assert not problems(reward, 'verifier_field: "kind"')
    assert not problems('rewards { regular_expression: "x" }')


def test_a_charge_for_length_fits_one_answer() -> None:
    assert not problems("rewards { overlong { buffer_tokens: 16 } }")
    (message,) = problems("rewards { overlong { buffer_tokens: 17 } }").values()
    assert "17 is more than rollout.max_new_tokens, 16" in message
    (message,) = problems("rewards { overlong { buffer_tokens: 4 } }", rollout="multi_turn { max_turns: 2 }").values()
    assert "rollout.multi_turn has several" in message
