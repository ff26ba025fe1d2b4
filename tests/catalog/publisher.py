"""`python -m tests.catalog.publisher CATALOGUE ENDPOINT FOLDER` publishes merges in processes that may be killed.

A line on standard input, `NAME COLLECTION STEP`, is one such process: STEP is the step before which it is killed, and
the merge's COLLECTION may be `-`. What became of it is a line on standard output: the commit, whether it was there,
how many steps it took, and at which of them the Hub had answered that it has the commit.
"""

import os
import signal
import sys
from dataclasses import replace
from itertools import count
from pathlib import Path

from huggingface_hub import set_client_factory
from huggingface_hub.utils import httpx
from sqlalchemy import event

from catalog.hub import Hub
from catalog.publish import Policy, publish
from catalog.release import Release
from catalog.schema import open_catalogue

from .releases import release_of
from .samples import DOG, NEON, merge


def release_called(name: str, folder: Path) -> Release:
    """A merge of a method of this name, with tensors of its own."""
    own = folder / name
    own.mkdir(exist_ok=True)
    release = replace(release_of(own), merge_id=merge(DOG, NEON, name).merge_id, method=name)
    for file in release.weight_files.values():
        file.write_bytes(file.read_bytes() + name.encode())
    return release


def _publish(catalogue: str, endpoint: str, release: Release, collection: str | None, last: int) -> str:
    """Steps are counted before and after each request to the Hub and each change of the catalogue."""
    steps = count(1)
    answered = 0

    def step(*seen: object) -> None:
        nonlocal answered
        number = next(steps)
        if number == last:
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(seen[0], httpx.Response) and "/commit/" in seen[0].url.path:
            answered = number

    set_client_factory(lambda: httpx.Client(event_hooks={"request": [step], "response": [step]}))
    engine = open_catalogue(catalogue)
    event.listen(engine, "before_cursor_execute", step)
    event.listen(engine, "commit", step)
    published = publish(release, Policy("me", collection=collection), Hub(endpoint), engine, dry_run=False)
    return f"{published.commit} {published.was_there} {next(steps) - 1} {answered}"


def main(catalogue: str, endpoint: str, folder: str) -> None:
    for line in sys.stdin:
        name, collection, last = line.split()
        child = os.fork()
        if child == 0:
            release = release_called(name, Path(folder))
            said = _publish(catalogue, endpoint, release, None if collection == "-" else collection, int(last))
            os.write(1, f"{said}\n".encode())
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            os.write(1, b"killed\n" if code == -signal.SIGKILL else b"failed\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
