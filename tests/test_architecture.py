"""The arrows of DESIGN's table point one way, and no code of ours opens a pickle."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[1]

_NEVER_IMPORTS = {
    "ziplora": {"catalog", "flows", "prefect", "sqlalchemy", "duckdb", "huggingface_hub"},
    "catalog": {"ziplora", "flows", "prefect", "torch", "diffusers"},
    "flows": {"torch", "diffusers", "sqlalchemy", "duckdb"},
}
_IMPORTED_BY_NOBODY = {"infra", "tests"}
_PACKAGES = [package for package in _NEVER_IMPORTS if (_ROOT / package).is_dir()]

_DOORS = ("diffusers", "transformers", "peft")
"""Libraries that the model side reaches through one module each. The tiny world is no stage: it makes
the models that the stages load, and may build them directly."""

_PICKLE_MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"}
_PICKLE_CALLS = {
    "torch.load",
    "torch.save",
    "torch.jit.load",
    "torch.serialization.load",
    "numpy.lib.format.read_array",
}


def _sources(package: str) -> Iterator[Path]:
    return (path for path in sorted((_ROOT / package).rglob("*.py")) if ".venv" not in path.parts)


def _imports(tree: ast.AST) -> Iterator[tuple[str, str, int]]:
    """(local name, dotted name, line) of every absolute import, those by function call included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                local = alias.asname or alias.name.split(".")[0]
                yield local, alias.name if alias.asname else local, node.lineno
                yield "", alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).split(".")[-1]
            if called in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield "", node.args[0].value, node.lineno


def _imported_libraries(tree: ast.AST) -> dict[str, int]:
    return {dotted.split(".")[0]: line for _, dotted, line in _imports(tree)}


def _pickle_uses(tree: ast.AST) -> list[str]:
    """Every place that could run code from a file, as `line N: name`."""
    imports = list(_imports(tree))
    full_names = {local: dotted for local, dotted, _ in imports if local}
    uses = {(line, dotted) for _, dotted, line in imports if dotted.split(".")[0] in _PICKLE_MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            dotted = ".".join([full_names.get(first, first), *rest])
            if dotted in _PICKLE_CALLS:
                uses.add((node.lineno, dotted))
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
            uses.add((node.lineno, "allow_pickle"))
    return [f"line {line}: {name}" for line, name in sorted(uses)]


@pytest.mark.parametrize("package", _PACKAGES)
def test_no_arrow_points_the_wrong_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(_ROOT)}:{line} imports {library}, but {package} never does: see DESIGN's table of packages."
        for path in _sources(package)
        for library, line in _imported_libraries(ast.parse(path.read_text())).items()
        if library in _NEVER_IMPORTS[package] | (_IMPORTED_BY_NOBODY - {package})
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library", _DOORS)
def test_the_stages_reach_a_heavy_library_through_one_module(library: str) -> None:
    modules = {
        path.relative_to(_ROOT / "ziplora").parts[0]
        for path in _sources("ziplora")
        if library in _imported_libraries(ast.parse(path.read_text()))
    }
    doors = sorted(modules - {"tinyworld"})
    assert len(doors) <= 1, (
        f"{library} is imported by {' and '.join(doors)} of ziplora: one of them should be its door."
    )


@pytest.mark.parametrize("package", [*_PACKAGES, *(name for name in ("infra",) if (_ROOT / name).is_dir())])
def test_no_code_of_ours_opens_a_pickle(package: str) -> None:
    found = [
        f"{path.relative_to(_ROOT)}, {use}: a pickle runs the code in it; keep tensors as safetensors."
        for path in _sources(package)
        for use in _pickle_uses(ast.parse(path.read_text()))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", _PACKAGES)
def test_nothing_downloads_a_repository_as_a_whole(package: str) -> None:
    found = [str(path.relative_to(_ROOT)) for path in _sources(package) if "snapshot_download" in path.read_text()]
    assert not found, f"{found}: it may bring half of a repository and say nothing; take file by file, by commit."


def test_every_package_is_installed() -> None:
    listed = tomllib.loads((_ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    present = {
        ".".join(path.parent.relative_to(_ROOT).parts)
        for top in _PACKAGES
        for path in (_ROOT / top).rglob("__init__.py")
    }
    assert set(listed) == present, "pyproject.toml lists the packages by name."


@pytest.mark.parametrize(
    "code",
    [
        "import duckdb",
        "import duckdb.experimental as d",
        "from duckdb import connect",
        "def late():\n    from duckdb.typing import VARCHAR",
        "importlib.import_module('duckdb')",
        "__import__('duckdb')",
    ],
)
def test_every_way_to_import_is_seen(code: str) -> None:
    assert "duckdb" in _imported_libraries(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load(path)",
        "import torch as t\nload = t.load",
        "from torch import load as read\nread(path)",
        "import torch.nn\ntorch.load(path)",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_every_way_to_a_pickle_is_seen(code: str) -> None:
    assert _pickle_uses(ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "from . import pickle_free",
        "model.load(path)",
        "import numpy\nnumpy.load(path, allow_pickle=False)",
        "from safetensors.torch import load\nload(data)",
        "import torch\nmodel.load_state_dict(weights)",
    ],
)
def test_what_is_no_pickle_is_left_alone(code: str) -> None:
    assert not _pickle_uses(ast.parse(code))
