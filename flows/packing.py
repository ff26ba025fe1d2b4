"""Which merges go to one worker together: those that share adapters, and no more than may be lost with it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean

from flows.plan import Job

_SHARES = 2
"""Batches for each of several workers, so that they end at about the same time. Each stands still between two."""
_SHARE_SECONDS = 180.0
"""A second share is at least so long, or not worth standing still for."""
_LEAST_SECONDS = 30.0
"""Any batch, or it is not worth the start of a process."""
_MOST_SECONDS = 1800.0
"""At most, so that a worker that ends before another one does not wait for long."""


def packed(jobs: Sequence[Job], most: int, seconds: Mapping[str, float], workers: int) -> Iterator[tuple[Job, ...]]:
    """Batches of at most so many merges, in the order of the plan, with the methods of a pair together if they fit.

    `seconds` is what a pair took before, by method; what was not measured is taken for the mean of the others.
    """
    usual = fmean(seconds.values()) if seconds else 1.0
    pairs = [tuple(pair) for _, pair in groupby(jobs, key=lambda job: (job.subject.sha256, job.style.sha256))]
    costs = [sum(seconds.get(job.recipe.method, usual) for job in pair) for pair in pairs]
    longest = _MOST_SECONDS if seconds else math.inf
    left = sum(costs)
    number = _number(len(jobs) / most, left if seconds else None, workers)
    batch: list[Job] = []
    took = 0.0
    for pair, cost in zip(pairs, costs, strict=True):
        is_full = len(batch) + len(pair) > most or took + cost > longest
        if batch and (is_full or took + cost / 2 > left / number):  # shares are even, and none is left over
            yield tuple(batch)
            left, number = left - took, max(number - 1, 1)
            batch, took = [], 0.0
        batch += pair
        took += cost
        while len(batch) > most:
            yield tuple(batch[:most])
            batch = batch[most:]
    if batch:
        yield tuple(batch)


def _number(full: float, seconds: float | None, workers: int) -> int:
    """How many batches of even size several workers get: as many for each, and no less than so many full ones."""
    if workers == 1:
        return 1
    if seconds is None:
        number = workers * _SHARES
    elif seconds < workers * _LEAST_SECONDS:
        number = max(1, int(seconds / _LEAST_SECONDS))
    else:
        number = workers * (_SHARES if seconds >= workers * _SHARES * _SHARE_SECONDS else 1)
        full = max(full, seconds / _MOST_SECONDS)
    return number if number >= full else workers * math.ceil(full / workers)
