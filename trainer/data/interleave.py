"""The order in which sources take turns: each has its share of every prefix, to within one.

A period of P places has `counts[i]` places of source i. The k-th of them (from 0) must lie in [k P / count,
(k + 1) P / count): a job with a release and a deadline, of which earliest deadline first misses none (Baruah et al.,
1996, for periodic tasks that fill one processor). So the first p places hold floor(p count / P) or ceil(p count / P) of
every source.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np


def interleave(counts: Sequence[int]) -> np.ndarray:
    """The source of each place of a period, int32 [sum of counts]. A microsecond or two a place."""
    period = sum(counts)
    sources: np.ndarray = np.empty(period, np.int32)
    # (release, source, job) of each source's next job, and (deadline, source, job) of those that are released.
    waiting = [(0, source, 0) for source, count in enumerate(counts) if count]
    ready: list[tuple[int, int, int]] = []
    for place in range(period):
        while waiting and waiting[0][0] <= place:
            _, source, job = heapq.heappop(waiting)
            heapq.heappush(ready, (-(-(job + 1) * period // counts[source]), source, job))
        deadline, source, job = heapq.heappop(ready)
        assert place < deadline, (place, deadline, counts)
        sources[place] = source
        if job + 1 < counts[source]:
            heapq.heappush(waiting, ((job + 1) * period // counts[source], source, job + 1))
    return sources
