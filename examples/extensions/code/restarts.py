"""A cosine that starts again several times (Loshchilov and Hutter, 2017)."""

import math
from collections.abc import Callable


def schedule(cycles: str = "2") -> Callable[[int, int], float]:
    def multiple_of_peak(step: int, total_steps: int) -> float:
        progress = (step - 1) / total_steps * int(cycles) % 1
        return 0.5 * (1 + math.cos(math.pi * progress))

    return multiple_of_peak
