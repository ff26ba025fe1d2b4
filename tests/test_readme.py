"""What the README tells people to run does run."""

import re
from pathlib import Path

import pytest
from PIL import Image

from flows.cli import app
from flows.settings import parse_settings

_ROOT = Path(__file__).parents[1]


def test_the_python_example_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(_ROOT)
    exec(compile(example.replace("star.png", str(tmp_path / "star.png")), "README.md", "exec"), {})
    with Image.open(tmp_path / "star.png") as picture:
        assert picture.size == (256, 256)


def test_every_file_that_the_readme_names_is_there() -> None:
    text = (_ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) >= 1
    assert [link for link in links if not (_ROOT / link.partition("#")[0]).exists()] == []


def test_the_settings_in_the_readme_are_settings() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    settings = parse_settings(example, _ROOT)
    assert [source.role for source in settings.sources] == ["subject", "subject", "style"]
    assert settings.publish.enabled is False


def test_every_command_in_the_readme_is_one_and_every_one_is_there() -> None:
    named = set(re.findall(r"`ziplora ([a-z]+)", (_ROOT / "README.md").read_text()))
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert named | {"demo"} == known
