"""An engine counts as busy while it has a request, however many."""

from finecut.trainer.rollout.utilisation import Utilisation


def test_share_of_the_time_with_a_request() -> None:
    clock = [0.0]
    engines = Utilisation(2, lambda: clock[0])
    clock[0] = 1.0
    engines.begins(0)
    engines.begins(0)
    clock[0] = 2.0
    engines.ends(0)
    clock[0] = 3.0
    engines.ends(0)
    clock[0] = 4.0
    assert engines.take() == 2 / (4 * 2)
    engines.begins(1)
    clock[0] = 6.0
    assert engines.take() == 0.5
    clock[0] = 8.0
    assert engines.take() == 0.5  # still at the same request
