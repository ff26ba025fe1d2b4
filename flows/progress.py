"""How far a night is, told to whoever watches: a terminal's progress bars, or nobody."""

import faulthandler
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Watcher = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is, and how much there is in all (0 where nobody knows)."""

_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def tell(what: str, done: int, total: int) -> None:
    """Say how far something is."""
    watcher = _watcher.get()
    if watcher is not None:
        watcher(what, done, total)


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """All that is told inside goes to this watcher."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def ends_when_silent(seconds: float) -> Iterator[None]:
    """While it lasts, this process ends when nothing is told for so long: a card that hangs raises nothing.

    The clock is a thread of C: it goes on while the interpreter hangs, and says where that was.
    """
    outer = _watcher.get()
    log = sys.__stderr__ or sys.stderr

    def told(what: str, done: int, total: int) -> None:
        faulthandler.dump_traceback_later(seconds, exit=True, file=log)
        if outer is not None:
            outer(what, done, total)

    faulthandler.dump_traceback_later(seconds, exit=True, file=log)
    try:
        with watched(told):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def tell_pause(seconds: int) -> None:
    """Say that the Hub wants to be left alone for a while."""
    tell(f"waiting {seconds} s for the Hub", 0, 0)
