from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rollout.balancing import Balancer


def test_new_prompts_go_to_the_idlest_engine():
    balancer = Balancer(3)
    assert [balancer.take(name, tokens) for name, tokens in (("a", 100), ("b", 10), ("c", 10), ("d", 10))] == [
        0,
        1,
        2,
        1,
    ]
    balancer.done(0, 100)
    assert balancer.take("e", 5) == 0


def test_answers_to_one_prompt_stay_together_until_others_wait_for_work():
    balancer = Balancer(2)
    assert [balancer.take("a", 10) for _ in range(7)] == [0, 0, 0, 0, 0, 1, 1]
    balancer.forget({"a"})
    assert balancer.take("a", 10) == 1  # the idlest again


@settings(deadline=None, derandomize=True)
@given(st.integers(1, 5), st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 40)), max_size=80))
def test_no_engine_gets_far_ahead_of_the_others(num_engines, requests):
    balancer, taken, outstanding = Balancer(num_engines), [], [0] * num_engines
    for prompt, tokens in requests:
        engine = balancer.take(prompt, tokens)
        taken.append((engine, tokens))
        outstanding[engine] += tokens
        assert max(outstanding) - min(outstanding) <= 5 * 40
    for engine, tokens in taken:
        balancer.done(engine, tokens)
    # Idle again, it deals new prompts as at the start.
    assert [balancer.take(f"new {n}", 1) for n in range(num_engines)] == list(range(num_engines))
