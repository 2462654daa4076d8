"""The benchmark of recording trains, records half of its steps, and compares like with like."""

from pathlib import Path

import pytest

from finecut.tools.bench import recording
from finecut.trainer.parallel import process_group


def test_half_of_the_steps_are_recorded_with_everything(tmp_path: Path) -> None:
    with process_group.connect() as devices:
        result = recording.measure(tmp_path, "tiny", 2, 10, True, devices)
    assert [(one.on.num_steps, one.off.num_steps) for one in result.rounds] == [(10, 10)] * 2
    assert (result.num_recorded, result.num_detailed) == (20, 2)
    assert all(ratio > 0 for one in result.rounds for ratio in one.ratios)
    assert list((tmp_path / "runs/recording/stages/sft/tensorboard").iterdir())
    assert list((tmp_path / "runs/recording/stages/sft/example-losses").glob("*.parquet"))


def test_the_table_has_the_mean_ratio_and_its_error() -> None:
    spent = [recording.Spent(wall, wall, 10) for wall in (1.0, 1.02, 1.0, 1.04)]
    rounds = (recording.Round(on=spent[1], off=spent[0]), recording.Round(on=spent[3], off=spent[2]))
    assert rounds[1].ratios == pytest.approx((1.04, 1.04))
    lines = recording.table(recording.Result(rounds, (0.1, 0.5), 20, 2))
    assert lines[1].split() == ["1", "100.00", "102.00", "1.0200", "1.0200"]
    assert "recording costs +3.00% of wall, standard error 1.00%; median +3.00%" in lines
