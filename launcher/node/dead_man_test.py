"""The timer is wound up by leases that change, and by nothing else."""

from finecut.launcher.node.dead_man import DeadMan


def test_new_lease_winds_it_up_and_an_old_or_missing_one_does_not() -> None:
    calls: list[list[str]] = []
    timer = DeadMan(20, calls.append)
    for lease in (None, "1", "1", None, "1", "2"):
        timer.hear(lease)
    assert [call[1] for call in calls] == ["-c", "-P", "-c", "-P"]
    assert calls[1][2] == "+20"


def test_unfit_machine_ends_at_once() -> None:
    calls: list[list[str]] = []
    DeadMan(20, calls.append).end_now("nvidia-smi lists 7 GPUs of 8")
    assert calls == [["shutdown", "-P", "now", "finecut: nvidia-smi lists 7 GPUs of 8"]]
