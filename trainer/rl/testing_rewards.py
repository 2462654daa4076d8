"""A reward for tests of failing ones, named by its import path."""

import math

from finecut.trainer.rewards.answer import Answer


def of_even_prompts(answer: Answer) -> float:
    """Raises for odd references, except every fourth, which gets NaN."""
    number = int(str(answer.record["reference"]))
    if number % 4 == 3:
        return math.nan
    if number % 2:
        raise ValueError("odd")
    return 1.0
