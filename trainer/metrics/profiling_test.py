"""A trace of chosen steps ends where it would become too large, and is written all the same."""

from pathlib import Path

import pytest
import torch
from torch import nn

from finecut.trainer.keeping import ProfileConfig
from finecut.trainer.metrics import profiling
from finecut.trainer.metrics.profiling import Profiler


@pytest.mark.parametrize(("num_passes", "cut"), [(2, False), (30, True)])
def test_a_trace_has_so_many_passes_and_says_where_it_was_cut(num_passes: int, cut: bool, tmp_path: Path) -> None:
    said: list[str] = []
    model = nn.Linear(4, 4)
    profiler = Profiler(ProfileConfig(2, 1), tmp_path, True, said.append, model)
    for step in range(1, 4):
        with profiler.step(step):
            for _ in range(num_passes):
                model(torch.ones(2, 4))
    assert (tmp_path / profiling.FOLDER / "trace-steps-2-2.json.gz").exists()
    assert ("the first 24 forward passes" in said[0]) == cut
    (line,) = (line for line in said if "aten::addmm" in line)
    assert ("ms in all in 24 calls" if cut else f"ms a step in {num_passes} calls") in line
    assert not model._forward_pre_hooks


def test_a_step_that_fails_leaves_no_trace(tmp_path: Path) -> None:
    said: list[str] = []
    model = nn.Linear(4, 4)
    profiler = Profiler(ProfileConfig(1, 2), tmp_path, True, said.append, model)
    with pytest.raises(ZeroDivisionError), profiler.step(1):
        raise ZeroDivisionError
    with profiler.step(2):
        model(torch.ones(2, 4))
    profiler.finish(2)
    assert not said and not model._forward_pre_hooks and not list(tmp_path.iterdir())
