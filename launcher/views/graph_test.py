"""The drawing of stages: arrows go around what stands between."""

import re

import pytest

from finecut.launcher.views import graph
from finecut.launcher.views.graph import BOX_HEIGHT, BOX_WIDTH, GAP_X, GAP_Y, Box


def box(column: int, row: int) -> Box:
    return Box(column * (BOX_WIDTH + GAP_X), row * (BOX_HEIGHT + GAP_Y), "", "", "", "")


@pytest.mark.parametrize(
    ("start", "end", "between"),
    [((0, 1), (2, 0), [(1, 0)]), ((0, 0), (3, 1), [(1, 0), (2, 0)]), ((0, 0), (2, 1), [(1, 0), (1, 1)])],
)
def test_an_arrow_passes_no_box(start: tuple[int, int], end: tuple[int, int], between: list[tuple[int, int]]) -> None:
    boxes = [box(*place) for place in (start, *between, end)]
    arrow = graph._arrow(boxes[0], boxes[-1], {(each.x, each.y) for each in boxes})
    level = re.fullmatch(r"M\S+ C\S+ \S+ ([\d.]+),([\d.]+) H([\d.]+) C.*", arrow)
    assert level, arrow
    left, y, right = map(float, level.groups())
    assert left <= boxes[1].x and right >= boxes[-2].x + BOX_WIDTH
    assert not any(each.y <= y <= each.y + BOX_HEIGHT for each in boxes[1:-1])


def test_neighbours_are_joined_directly() -> None:
    assert "H" not in graph._arrow(box(0, 0), box(1, 1), {(0, 0)})
