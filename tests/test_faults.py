"""The table of faults: every row has its tests, and every test that it names is there."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

_ROOT = Path(__file__).parents[1]
_TABLE: dict[str, dict[str, Any]] = yaml.safe_load((_ROOT / "tests/faults.yaml").read_text(encoding="utf-8"))
_ROWS = [
    f"{kind}{number}" for kind, count in zip("FMHPU", (13, 20, 13, 7, 8), strict=True) for number in range(1, count + 1)
]


@cache
def _tests_in(path: str) -> set[str]:
    tree = ast.parse((_ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def test_the_table_has_every_row_once_and_in_order() -> None:
    assert list(_TABLE) == _ROWS


@pytest.mark.parametrize("row", _ROWS)
def test_a_row_has_tests_that_are_there(row: str) -> None:
    tests = _TABLE[row]["tests"]
    assert tests
    for test in tests:
        path, _, name = test.partition("::")
        assert name in _tests_in(path), f"{row} names {test}, which is not there."
