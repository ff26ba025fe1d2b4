"""What a device has room for: when its memory runs out, less is done at once, until even the least does not fit.

Nothing is estimated beforehand. What ran out of memory is done again in the next thriftier way, and the device keeps to
that way from then on.
"""

import gc
import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from functools import partial
from typing import Generic, TypeVar

import torch

from .failure import Failure

_LOG = logging.getLogger(__name__)
_GIB = 1 << 30

Way = TypeVar("Way")
Result = TypeVar("Result")


class Thrift(Enum):
    """How a step of training saves memory; results differ by rounding alone."""

    NONE = auto()
    RECOMPUTED = auto()
    """Of every block only the input is kept: the backward pass computes the rest again."""
    PIECEWISE = auto()
    """The same, and one sample after the other."""


class Ways(Generic[Way]):
    """The ways to do one kind of work, the thriftiest last; those that there is no room for are given up for good."""

    def __init__(self, device: torch.device, ways: Sequence[Way]) -> None:
        self._device, self._ways = device, list(ways)

    @property
    def chosen(self) -> Way:
        """The first that is not given up."""
        return self._ways[0]

    def do(self, work: Callable[[Way], Result]) -> Result:
        """The result of the work, begun again in the next way whenever the memory runs out."""
        while True:
            try:
                return work(self.chosen)
            except torch.OutOfMemoryError as error:
                failure = _failure(self._device, error)
            if len(self._ways) == 1:
                raise failure
            _LOG.warning("%s  %s It goes on with less at once.", failure.code, failure.fact)
            del self._ways[0]


class Room:
    """What there is room for on one device, by kind of work."""

    def __init__(self, device: torch.device) -> None:
        self.trained: Ways[Thrift] = Ways(device, tuple(Thrift))
        self.predicted: Ways[int] = Ways(device, (16, 8, 4, 2, 1) if device.type == "cuda" else (4, 2, 1))
        """How many samples go through the UNet at once, where no gradient is wanted: few do not keep a GPU busy."""
        self.encoded: Ways[int] = Ways(device, (8, 4, 2, 1))
        """How many pictures."""
        self.drawn: Ways[int] = Ways(device, (8, 4, 2, 1))


def in_batches(ways: Ways[int], count: int, work: Callable[[slice], Result]) -> Iterator[Result]:
    """The results of the work, batch by batch: it may be begun and given up, so it must leave no traces."""
    start = 0
    while start < count:
        stop, result = ways.do(partial(_batch, work, start, count))
        yield result
        start = stop


def _batch(work: Callable[[slice], Result], start: int, count: int, at_once: int) -> tuple[int, Result]:
    stop = min(start + at_once, count)
    return stop, work(slice(start, stop))


@contextmanager
def shortage_in_words(device: torch.device) -> Iterator[None]:
    """A lack of memory that nothing thriftier was tried for is a failure like any other."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise _failure(device, error) from None


def _failure(device: torch.device, error: torch.OutOfMemoryError) -> Failure:
    """What is said of a lack of memory; whatever the interrupted work still holds is let go."""
    failure = Failure(
        "OUT_OF_MEMORY",
        _fact(device),
        "stop what else uses that device, draw and calibrate smaller pictures, or take a device with more memory.",
    )
    traceback.clear_frames(error.__traceback__)
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return failure


def _fact(device: torch.device) -> str:
    if device.type != "cuda":
        return f"The device {device} ran out of memory."
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.memory_allocated(device)
    return (
        f"{torch.cuda.get_device_name(device)} ran out of memory: of its {total / _GIB:.1f} GiB"
        f" {(total - free) / _GIB:.1f} were in use, {own / _GIB:.1f} by tensors of this process."
    )


def free_bytes(device: str) -> int | None:
    """How much memory of the card that `device` means is free for anybody; None where it means no card."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info()
    return int(free)
