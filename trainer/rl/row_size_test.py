"""Rows hold the longest answer, and on GPUs as many as keep one busy."""

import pytest

from finecut.trainer.rl.row_size import row_tokens


@pytest.mark.parametrize(
    ("longest", "answers", "on_gpu", "expected"),
    [
        (640, 512, True, 12 * 640),
        (640, 3, True, 3 * 640),
        (641, 512, True, 10 * 768),
        (9000, 512, True, 9088),
        (640, 512, False, 640),
        (14, 1, False, 128),
    ],
)
def test_rows_are_as_long_as_the_device_likes(longest: int, answers: int, on_gpu: bool, expected: int) -> None:
    assert row_tokens(longest, answers, on_gpu) == expected
