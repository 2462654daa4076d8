"""Random generators come back exactly where they were."""

import io
import random

import numpy as np
import torch

from finecut.trainer.checkpoint import random_state


def draw() -> tuple[float, ...]:
    # Gaussians first: Python and NumPy keep the second half of a pair as state of its own.
    return random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(()).item()


def test_restored_generators_continue_the_same_sequence():
    random_state.seed(7, rank=0)
    draw()
    file = io.BytesIO()
    torch.save(random_state.capture(), file)
    expected = [draw() for _ in range(3)]
    random_state.seed(8, rank=0)
    file.seek(0)
    random_state.restore(torch.load(file, weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_seed_rank_and_step_each_change_the_sequence():
    drawn = set()
    for arguments in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]:
        random_state.seed(*arguments)
        drawn.add(draw())
    assert len(drawn) == 4
