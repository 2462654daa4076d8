from hypothesis import given, settings
from hypothesis import strategies as st

from finecut.trainer.rollout.balancing import Balancer, Load


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


def test_an_engine_that_leaves_gets_nothing_more_and_finishes_what_it_has():
    balancer = Balancer(2)
    assert [balancer.take("a", 10), balancer.take("b", 10)] == [0, 1]
    balancer.resize(1)
    assert balancer.take("b", 10) == 0  # although its home was the other
    assert balancer.outstanding(1) == 10
    balancer.done(1, 10)
    balancer.resize(3)
    assert balancer.take("c", 10) == 1  # idle, and back


def test_load_is_what_was_given_and_how_long_engines_were_at_it_since_it_was_asked():
    now = [0.0]
    balancer = Balancer(2, lambda: now[0])
    assert balancer.load() == Load(busy_s=0, imbalance=1)
    assert [balancer.take("a", 20), balancer.take("a", 10), balancer.take("b", 10)] == [0, 0, 1]
    now[0] = 3.0
    balancer.done(0, 20)
    balancer.done(1, 10)
    assert balancer.load() == Load(busy_s=3 + 3, imbalance=1.5)
    now[0] = 4.0
    balancer.done(0, 10)
    now[0] = 9.0
    assert balancer.load() == Load(busy_s=1, imbalance=1)
