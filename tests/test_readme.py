"""What the README tells people to run does run."""

import re
from pathlib import Path

import pytest
from PIL import Image

from ziplora.tinyworld.bundle import FILES

_ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(not FILES.exists(), reason="the trained files are not committed yet")
def test_the_python_example_draws_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(_ROOT)
    exec(compile(example.replace("robot.png", str(tmp_path / "robot.png")), "README.md", "exec"), {})
    with Image.open(tmp_path / "robot.png") as picture:
        assert picture.size == (256, 256)


def test_every_file_that_the_readme_names_is_there() -> None:
    text = (_ROOT / "README.md").read_text()
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert len(links) >= 1
    assert [link for link in links if not (_ROOT / link).exists()] == []
