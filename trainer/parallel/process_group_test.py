"""Joining a group: alone, as two ranks, and with half an environment."""

from pathlib import Path

import pytest

from finecut.proto.config import UserError
from finecut.trainer.parallel import process_group
from finecut.trainer.recipes.testing import run_ranks


def test_one_process_makes_a_group_of_its_own():
    with process_group.connect() as devices:
        assert (devices.rank, devices.world_size, devices.is_main) == (0, 1, True)
        assert devices.sum(1.5, 2.0) == [1.5, 2.0]
        assert devices.from_main({"a": 1}) == {"a": 1}
    with process_group.connect():
        pass  # the first group was left behind cleanly


def write_reductions(folder: Path) -> None:
    with process_group.connect() as devices:
        rank = devices.rank
        numbers = (devices.sum(rank + 1, 10 * rank), devices.max(rank), devices.from_main(f"from {rank}"))
        (folder / f"{rank}").write_text(repr(numbers))


def test_two_ranks_agree_on_every_reduction(tmp_path):
    run_ranks(2, write_reductions, tmp_path)
    assert [(tmp_path / rank).read_text() for rank in ("0", "1")] == ["([3.0, 10.0], 1.0, 'from 0')"] * 2


def test_half_an_environment_is_refused(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    refused = pytest.raises(UserError, match=r"RANK is set but WORLD_SIZE, .* is not: start ranks with torchrun")
    with refused, process_group.connect():
        pass
