"""Rewards for tests, named by their import paths: one that fails, one that takes its time."""

import math
import os
import time

from finecut.trainer.rewards.answer import Answer

SLOW_WHILE = "FINECUT_TEST_SLOW_WHILE"
"""Environment variable: a file; `at_leisure` is slow while it is there."""


def of_even_prompts(answer: Answer) -> float:
    """Raises for odd references, except every fourth, which gets NaN."""
    number = int(str(answer.record["reference"]))
    if number % 4 == 3:
        return math.nan
    if number % 2:
        raise ValueError("odd")
    return 1.0


def at_leisure(answer: Answer) -> float:
    """Takes its time while it may."""
    if os.path.exists(os.environ[SLOW_WHILE]):
        time.sleep(0.6)
    return float("z" in answer.text)
