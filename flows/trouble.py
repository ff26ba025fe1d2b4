"""What went wrong, in words: a reason for one item, or a problem of the whole night."""

import errno

from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.hub_errors import AGAIN, UNANSWERED
from flows.settings import Problem
from ziplora.failure import Failure
from ziplora.header import Refusal


def reason_of(error: Exception) -> Reason:
    """Why one item came to nothing; a full disk or a lost catalogue is everybody's trouble, and is raised."""
    if isinstance(error, Refused):
        return error.reason
    if isinstance(error, Failure | Refusal):
        return Reason(error.code, error.fact, error.next_step)
    if isinstance(error, CatalogueError) and error.code in UNANSWERED:
        return Reason(error.code, str(error).partition(": ")[2], AGAIN)
    if isinstance(error, CatalogueError | Problem):
        raise error
    if is_disk_full(error):
        raise disk_full(error) from error
    fact = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}."
    return Reason("UNEXPECTED", fact, "look at the log of this task run; it is tried again the next night.")


def is_disk_full(error: BaseException) -> bool:
    """Whether there was no room left to write."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def disk_full(error: BaseException) -> Problem:
    """What is said of a full disk."""
    place = getattr(error, "filename", None) or "the store, or what lies beside it"
    return Problem("DISK_FULL", f"There is no room left to write {place}.", "free some and run again.", 3)
