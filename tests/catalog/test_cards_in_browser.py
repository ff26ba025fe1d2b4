"""Cards with the names of strangers, as the Hub would show them, in a real browser: all text, no script, no request."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from catalog.collection import member
from catalog.collection_card import collection_card
from catalog.merge_card import merge_card
from catalog.names import one_line
from catalog.release import Release

from .hostile import hostile_texts
from .releases import release_of

_TITLE = "untouched"


@dataclass
class Listener:
    """Counts who calls."""

    url: str = ""
    calls: list[str] = field(default_factory=list)


@pytest.fixture
def listener() -> Iterator[Listener]:
    found = Listener()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.calls.append(self.path)
            self.send_error(404)

        def log_message(self, *arguments: object) -> None:
            """Tests have no use for it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.url = f"http://127.0.0.1:{server.server_address[1]}/spy"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield found
    server.shutdown()
    server.server_close()


class _Shown(HTMLParser):
    """The text of every element of a kind, as a page shows it."""

    def __init__(self, page: str, *kinds: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self._kinds, self._inside = kinds, False
        self.feed(page)

    def handle_starttag(self, tag: str, _attributes: object) -> None:
        if tag in self._kinds:
            self.texts.append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in self._kinds

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.texts[-1] += data


def _in_browser(content: str, folder: Path) -> str:
    """The page after its scripts, if any, have run."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Found no chromium: install it to test with a real browser.")
    page = folder / "page.html"
    page.write_text(f"<!doctype html><meta charset=utf-8><title>{_TITLE}</title>{content}", encoding="utf-8")
    switches = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--virtual-time-budget=3000"]
    command = [chromium, *switches, f"--user-data-dir={folder / 'browser'}", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def _rendered(card: str) -> str:
    """As the Hub shows it: GitHub's Markdown, raw HTML and all."""
    text = card.split("---\n", 2)[2]
    return str(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))


def _named(release: Release, text: str) -> Release:
    subject = replace(release.subject, name=text, repository=text, file_name=text, prompt=text, licence=text)
    return replace(release, subject=subject, prompt=text, base_model=text, recipe={"prompt": text, text: 1})


def test_the_rig_sees_what_it_looks_for(listener: Listener, tmp_path: Path) -> None:
    texts = hostile_texts(listener.url)
    assert len(set(texts)) >= 100
    shown = _in_browser(f"<h1>{texts[0]}</h1>{texts[5]}", tmp_path)
    assert listener.calls
    assert f"<title>{_TITLE}</title>" not in shown


def test_a_hundred_hostile_names_are_shown_letter_by_letter(listener: Listener, tmp_path: Path) -> None:
    release = release_of(tmp_path)
    texts = hostile_texts(listener.url)
    cards = [merge_card(_named(release, text), "me/x") for text in texts]
    for card in cards:
        ModelCard(card)  # the client reads its front matter
    shown = _in_browser("<hr>".join(map(_rendered, cards)), tmp_path)
    assert listener.calls == []
    assert f"<title>{_TITLE}</title>" in shown
    assert _Shown(shown, "h1").texts == [f"{one_line(text)} × neon" for text in texts]
    codes = set(_Shown(shown, "code").texts)
    assert [text for text in texts if one_line(text) not in codes] == []
    kinds = {"script", "img", "iframe", "svg", "style", "link", "object", "embed", "form"}
    assert _Shown(shown, *kinds).texts == []


def test_the_card_of_a_collection_of_a_hundred_hostile_names_too(listener: Listener, tmp_path: Path) -> None:
    release = release_of(tmp_path)
    texts = hostile_texts(listener.url)
    card = collection_card([member(_named(release, text), 8) for text in texts], "me/all")
    ModelCard(card)
    shown = _in_browser(_rendered(card), tmp_path)
    assert listener.calls == []
    assert f"<title>{_TITLE}</title>" in shown
    cells = set(_Shown(shown, "td").texts)
    assert [text for text in texts if not {f"{one_line(text)} × neon", one_line(text)} <= cells] == []
    assert _Shown(shown, "script", "img", "iframe", "svg", "style").texts == []
