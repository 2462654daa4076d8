"""The planner is near what was measured: peak memory within 8%, step time within 20%; and its page shows this."""

from pathlib import Path

import pytest

from finecut.tools.gpu_bench import planned

ROOT = Path(planned.__file__).parents[2]


@pytest.mark.parametrize("measured", planned.MEASURED, ids=lambda m: f"{m.case} on {m.gpu}")
def test_is_near_what_was_measured(measured: planned.Measured) -> None:
    found = planned.compare(measured)
    assert abs(found.memory_error) < 0.08, found
    assert abs(found.time_error) < 0.20, found


def test_the_page_shows_this_table() -> None:
    page = (ROOT / "docs" / "planner.md").read_text(encoding="utf-8")
    assert planned.table() in page, f"docs/planner.md is old; put this there:\n{planned.table()}"


def test_every_measured_number_is_in_the_page_of_measurements() -> None:
    page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    for measured in planned.MEASURED:
        assert f"{measured.tokens_per_second:,.0f} |" in page and f"{measured.peak_gib:.1f} |" in page, measured
