"""Threads of torch's operators on processors. OpenMP reads its environment once, when torch is imported."""

import os


def prepare(num_threads: int | None = None) -> None:
    """Sets how many there are, where that is given, and has those that wait sleep.

    By default they spin, which takes cores from whatever else runs: beside another program on two cores, 40 steps of a
    tiny model took 37 s of processor time, and 2 s so. A policy that the user has set stays.
    """
    if num_threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
