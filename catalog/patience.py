"""When the Hub may be asked again: one pause for all threads of this process, as long as the Hub says."""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import httpx, parse_ratelimit_headers

from catalog.errors import CatalogueError

PAUSES_SECONDS: tuple[float, ...] = (0.5, 1, 2, 4, 8)
"""Between tries, each a little shorter or longer by chance, so that many who failed at once do not return at once."""
_BUSY = (408, 429, 500, 502, 503, 504)
_ROUNDING_SECONDS = 1
"""The Hub counts in whole seconds."""
_Answer = TypeVar("_Answer")


class Patience:
    """Open until an answer of the Hub names a moment before which it wants no request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_at = 0.0

    def wait(self, stopped: threading.Event) -> None:
        """Return when the Hub may be asked; raise as soon as nobody wants to ask any more."""
        while (seconds := self._open_at - time.monotonic()) > 0 and not stopped.wait(seconds):
            pass
        if stopped.is_set():
            raise CatalogueError("STOPPED", "Nobody waits for the Hub's answer any more. Run again.")

    def asked(self, ask: Callable[[], _Answer], stopped: threading.Event) -> _Answer:
        """What the Hub answers, asked again after a pause while it is busy or the line breaks.

        The client's own way to do so gives up when the line breaks within an answer, and lets other threads go on
        asking while one of them waits.
        """
        for pause in PAUSES_SECONDS:
            self.wait(stopped)
            try:
                return ask()
            except (HfHubHTTPError, httpx.TransportError) as error:
                if not passes(error):
                    raise
            stopped.wait(pause * random.uniform(0.5, 1.5))
        self.wait(stopped)
        return ask()

    def heed(self, answer: httpx.Response) -> int:
        """Close as long as an answer says: the seconds, if nobody knew yet that it is closed, else 0."""
        seconds = _asked_for(answer)
        if not seconds:
            return 0
        now = time.monotonic()
        with self._lock:
            was_open = self._open_at <= now
            self._open_at = max(self._open_at, now + seconds)
        return seconds if was_open else 0


def passes(error: HfHubHTTPError | httpx.TransportError) -> bool:
    """Whether the same request may go well another time."""
    return not isinstance(error, HfHubHTTPError) or error.response.status_code in _BUSY


def _asked_for(answer: httpx.Response) -> int:
    """How long the Hub wants to be left alone: told with an answer 429, or with the last one that is free."""
    limit = parse_ratelimit_headers(answer.headers)
    if limit is not None and limit.remaining == 0:
        return limit.reset_in_seconds + _ROUNDING_SECONDS
    after = answer.headers.get("retry-after", "")
    return int(after) + _ROUNDING_SECONDS if answer.status_code in (429, 503) and after.isdigit() else 0
