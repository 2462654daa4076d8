"""Every way to cut the same batch gives the gradient of one process that holds all of it; docs/matrix.md says which."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from finecut.trainer.recipes import invariance
from finecut.trainer.recipes.invariance import Result


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    return invariance.run_on_cpus(tmp_path_factory.mktemp("invariance"))


def test_gradients_are_those_of_one_process(results):
    wrong = [result for result in results if not result.worst <= invariance.TOLERANCE["cpu"]]
    assert not wrong, "\n".join(map(str, wrong))


def test_any_two_settings_meet():
    choices = [["a", "b", "c"], [1, 2], [True, False], ["x", "y"]]
    rows = invariance.pairwise(choices)
    assert len(rows) < 24 / 2
    assert {pair for row in rows for pair in invariance.pairs_of(row)} == {
        ((i, one), (j, other)) for i in range(4) for j in range(i + 1, 4) for one in choices[i] for other in choices[j]
    }


def test_the_published_matrix_is_what_was_measured(results):
    expected = invariance.render(results)
    found = (Path(__file__).parents[2] / "docs" / "matrix.md").read_text(encoding="utf-8")
    diff = "\n".join(
        difflib.unified_diff(found.splitlines(), expected.splitlines(), "docs/matrix.md", "measured", "", "")
    )
    assert not diff, f"run `bazel run //trainer/recipes:invariance`, which writes the page:\n{diff}"
