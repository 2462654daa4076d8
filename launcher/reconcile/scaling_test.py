"""Nodes come when work waits, and go when they have done nothing for long."""

from hypothesis import given
from hypothesis import strategies as st

from finecut.launcher.reconcile.scaling import Bounds, Scaler, Target, Use

IDLE_S = 600.0


def use(busy: int = 0, idle: str = "", waiting: int = 0, is_needed: bool = True) -> Use:
    return Use(busy, frozenset(idle), waiting, is_needed)


def test_waiting_work_brings_nodes_up_to_the_most() -> None:
    scaler = Scaler(Bounds(1, 4), 1, IDLE_S)
    assert scaler.after_look(use(busy=1, waiting=2), 0.0) == Target(3)
    assert scaler.after_look(use(busy=1, waiting=2), 10.0) == Target(3), "those that boot are not asked for twice"
    assert scaler.after_look(use(busy=3, waiting=9), 20.0) == Target(4)


def test_node_goes_after_it_has_been_idle_for_long_and_not_before() -> None:
    scaler = Scaler(Bounds(1, 4), 3, IDLE_S)
    assert scaler.after_look(use(busy=1, idle="ab"), 0.0) == Target(3)
    assert scaler.after_look(use(busy=2, idle="a"), 300.0) == Target(3), "b has worked in between"
    assert scaler.after_look(use(busy=1, idle="ab"), IDLE_S) == Target(2, ("a",))
    assert scaler.after_look(use(busy=1, idle="b"), 2 * IDLE_S) == Target(1, ("b",))


def test_the_fewest_stay_while_the_group_is_needed_and_go_when_it_is_not() -> None:
    scaler = Scaler(Bounds(2, 2), 2, IDLE_S)
    scaler.after_look(use(idle="ab"), 0.0)
    assert scaler.after_look(use(idle="ab"), 10 * IDLE_S) == Target(2)
    assert scaler.after_look(use(idle="ab", is_needed=False), 11 * IDLE_S) == Target(0, ("a", "b"))


def test_node_that_took_up_work_meanwhile_is_kept() -> None:
    scaler = Scaler(Bounds(0, 2), 1, 0.0)
    assert scaler.after_look(use(idle="a"), 0.0) == Target(0, ("a",))
    scaler.kept("a")
    assert scaler.after_look(use(busy=1), 1.0) == Target(1)


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 9), st.booleans()), max_size=20),
    st.integers(0, 3),
    st.integers(3, 6),
)
def test_count_stays_within_bounds_whatever_is_seen(
    looks: list[tuple[int, int, int, bool]], fewest: int, most: int
) -> None:
    scaler = Scaler(Bounds(fewest, most), fewest, IDLE_S)
    for number, (busy, idle, waiting, is_needed) in enumerate(looks):
        before = scaler.count
        target = scaler.after_look(use(busy, "abcdef"[:idle], waiting, is_needed), number * 400.0)
        assert 0 <= target.count <= most and len(target.spare) == max(0, before - target.count)
        assert target.count >= min(before, fewest) or not is_needed


def test_bounds_of_one_size_never_move_while_needed() -> None:
    scaler = Scaler(Bounds(2, 2), 2, 0.0)
    for waiting in (0, 5):
        assert scaler.after_look(use(busy=0, idle="ab", waiting=waiting), 1.0) == Target(2)
