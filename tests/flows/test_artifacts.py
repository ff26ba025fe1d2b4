"""What people see of a night does not cost the server a call for each merge."""

from uuid import uuid4

import pytest

from flows import artifacts
from flows.artifacts import progress_of


def test_a_bar_moves_now_and_then_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[float] = [100.0]
    shown: list[float] = []
    monkeypatch.setattr("flows.artifacts.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(artifacts, "create_progress_artifact", lambda **_: uuid4())
    monkeypatch.setattr(artifacts, "update_progress_artifact", lambda progress, **_: shown.append(progress))
    show = progress_of("batch-1", "100 merges")
    for done in range(1, 101):
        clock[0] += 0.5
        show(done, 100)
    assert shown == [20.0, 40.0, 60.0, 80.0, 100.0]
