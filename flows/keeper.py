"""Keeps Prefect workers at work on this machine: one for each card, each with a single batch at a time."""

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TextIO

from httpx import HTTPError
from prefect.settings import PREFECT_HOME

from flows.gone import living
from flows.settings import Problem, worker_environment

_AGAIN_SECONDS = 5.0
"""Between two starts of one worker."""
_LOOK_SECONDS = 20.0
"""Between two looks for runs that nobody does any more."""
_GRACE_SECONDS = 30.0
_DRIVER_SECONDS = 10.0
"""A driver that does not say for so long how a card is, hangs."""


@dataclass(frozen=True)
class Post:
    """Where a worker is to be: its pool, and its card if it has one."""

    pool: str
    card: int | None = None

    @property
    def name(self) -> str:
        """What people call it, in the Prefect UI too."""
        place = self.pool if self.pool != "gpu" else "cpu" if self.card is None else f"gpu{self.card}"
        return f"{platform.node()}-{place}"


@dataclass
class Kept:
    """A worker that is looked after."""

    post: Post
    lock: TextIO
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    starts: int = 0
    looked: float = 0.0
    waits_for: list[int] = field(default_factory=list)
    asked: subprocess.Popen[str] | None = None
    """What asked the driver last how the card is."""
    trouble: str | None = None


def cards() -> list[int]:
    """The numbers of this machine's cards."""
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    return [int(line) for line in said.stdout.split()] if said.returncode == 0 else []


def posts(chosen: Sequence[int], *, merge: bool, orchestrate: bool) -> list[Post]:
    """The workers for these cards, or for all there are, or for none on a machine without; and the one that plans."""
    there = cards()
    missing = sorted(set(chosen) - set(there))
    if missing:
        raise Problem("NO_CARD", f"There is no card {missing[0]}: nvidia-smi has {there}.", "name one of these.", 3)
    numbers: list[int | None] = [*(chosen or there)] or [None]
    wanted = [Post("gpu", number) for number in numbers] if merge else []
    return [*wanted, *([Post("orchestrate")] if orchestrate else [])]


def keep(wanted: Sequence[Post], say: Callable[[str], None]) -> list[Kept]:
    """Have a worker at each of these posts until SIGTERM or SIGINT, and start again those that die."""
    kept = [Kept(post, _lock(post)) for post in wanted]
    with _told_to_stop() as stop:
        while not stop.wait(1.0):
            for one in kept:
                try:
                    _look_after(one, say)
                except HTTPError as error:  # the server is away, and comes back
                    say(f"{one.post.name}: the server does not answer ({type(error).__name__})")
        for one in kept:
            _stop(one)
            one.lock.close()
    return kept


@contextmanager
def _told_to_stop() -> Iterator[Event]:
    """Set by SIGTERM and SIGINT, as long as it lasts."""
    stop = Event()
    earlier = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


def _lock(post: Post) -> TextIO:
    """A lock that is held as long as this process or its worker lives."""
    folder = Path(PREFECT_HOME.value()) / "workers"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / f"{post.name}.lock").open("w", encoding="ascii")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise Problem("WORKER_THERE", f"{post.name} is at work on this machine.", "stop it first.", 3) from error
    return lock


def _look_after(one: Kept, say: Callable[[str], None]) -> None:
    if one.process is not None and one.process.poll() is not None:
        say(f"{one.post.name} ended with {one.process.returncode}")
        one.process, one.looked = None, 0.0
    if time.monotonic() - one.looked < (_AGAIN_SECONDS if one.process is None else _LOOK_SECONDS):
        return
    one.looked = time.monotonic()
    trouble = _trouble_of(one)
    if trouble != one.trouble:
        say(f"{one.post.name} is not at work: {trouble}" if trouble else f"{one.post.name}: its card is well again")
        one.trouble = trouble
    if trouble is not None:
        if one.process is not None:  # it would take one batch after the other, and end none
            _stop(one)
            one.process = None
        return
    busy = living(one.post.pool, one.post.name, at_work=one.process is not None)
    if one.process is None and busy:  # its worker died, the run goes on: two of them would share the card
        if busy != one.waits_for:
            say(f"{one.post.name} waits for process {busy[0]}, which does what its last worker gave it")
        one.waits_for = busy
    elif one.process is None and time.monotonic() - one.started > _AGAIN_SECONDS:
        one.process, one.started, one.starts = _start(one), time.monotonic(), one.starts + 1
        say(f"{one.post.name} is at work")


def _trouble_of(one: Kept) -> str | None:
    """What the driver says against a worker's card: it is lost, hangs, or has memory that cannot be trusted."""
    if one.post.card is None:
        return None
    hangs = f"the driver does not answer within {_DRIVER_SECONDS:.0f} s"
    if one.asked is not None and one.asked.poll() is None:
        return hangs
    query = ["--query-gpu=ecc.errors.uncorrected.volatile.total", "--format=csv,noheader"]
    command = ["nvidia-smi", "-i", str(one.post.card), *query]
    one.asked = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        answer, _ = one.asked.communicate(timeout=_DRIVER_SECONDS)
    except subprocess.TimeoutExpired:
        one.asked.kill()  # what hangs in a driver does not even die; nobody waits for it
        if one.asked.stdout is not None:
            one.asked.stdout.close()
        return hangs
    answer = " ".join(answer.split())[:300]
    if one.asked.returncode:
        return answer or "nvidia-smi does not find its card"
    return f"its card has {answer} uncorrected memory errors" if answer.isdigit() and int(answer) else None


def _start(one: Kept) -> subprocess.Popen[bytes]:
    """A worker that ends when we do, however we end: without a keeper, it would hold the post against the next one."""
    work = ["worker", "start", "--pool", one.post.pool, "--type", "process", "--limit", "1", "--name", one.post.name]
    environment = worker_environment(one.post.card)
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "prefect", *work]
    return subprocess.Popen(command, env=environment, start_new_session=True, pass_fds=[one.lock.fileno()])


def _stop(one: Kept) -> None:
    """End a worker and what it runs; the run is Crashed at once, and the night begins its rest again elsewhere."""
    if one.process is not None:
        one.process.terminate()
        try:
            one.process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            one.process.kill()
            one.process.wait()
    with suppress(HTTPError):
        end = time.monotonic() + _GRACE_SECONDS
        while (busy := living(one.post.pool, one.post.name, at_work=False)) and time.monotonic() < end:
            for process in busy:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGTERM)
            time.sleep(1.0)
