"""A night under fire ends with every merge done once."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_is_done_twice() -> None:
    rig = [sys.executable, "infra/faults/rig.py", "--seed", "3", "--kills", "4", "--nights", "1", "--side", "3"]
    done = subprocess.run(rig, cwd=_ROOT, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["wrong"], found["unsettled"]) == ([], [])
    assert found["wanted"] == 9
    assert done.returncode == 0
