"""Scans of a Hub with hundreds of adapters: each file is asked for once, politely, and trouble leaves no trace."""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from catalog.hub import Hub
from catalog.patience import Patience
from catalog.queries import usable_adapters
from catalog.schema import Catalogue, open_catalogue
from flows import headers, scan
from flows.progress import watched
from flows.scan import Found
from tests.catalog.hub_contents import (
    KINDS,
    TOKEN,
    Files,
    HubServer,
    RateLimit,
    Trouble,
    always,
    nothing_wrong,
    seeded_trouble,
)
from tests.catalog.hub_server import serving
from tests.catalog.lora_files import card, lora_file, sdxl_weights, weights_named
from ziplora.adapter import AdapterHeader, describe
from ziplora.alpha import Config
from ziplora.header import Header

from .crowd import change, fill, known, scan_night, settings_of

COUNT = 200
FILES = COUNT * 18 // 20
"""Neither pickles nor gated files are asked for."""


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving() as running:
        yield running


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Catalogue]]:
    """Makes empty catalogues, by name."""
    opened = []

    def make_one(name: str) -> Catalogue:
        opened.append(open_catalogue(f"sqlite:///{tmp_path / name}.sqlite", migrate=True))
        return opened[-1]

    yield make_one
    for one in opened:
        one.dispose()


@pytest.fixture
def catalogue(make: Callable[[str], Catalogue]) -> Catalogue:
    return make("catalog")


@pytest.fixture
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01, 0.01, 0.02, 0.02, 0.05))
    monkeypatch.setattr("catalog.hub._MAX_READ_SECONDS", 0.1)


def _asked(server: HubServer) -> list[str]:
    """The files that were asked for since the last look."""
    files = [request for request in server.requests if "/resolve/" in request]
    server.requests.clear()
    return files


def _codes(found: list[Found]) -> Counter[str]:
    return Counter(one.reason.code if one.reason else "usable" for one in found)


def test_what_was_read_at_a_commit_is_not_read_again(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, COUNT)
    first = scan_night(server, catalogue, "first")
    bad = dict.fromkeys(("BAD_LAYOUT", "LICENCE_NO_DERIVATIVES", "PICKLE_REFUSED", "NO_TRIGGER_PROMPT", "GATED"), 10)
    assert _codes(first) == {"usable": 150, **bad}
    assert [one.repository for one in first] == [f"me/lora-{number:05}" for number in range(COUNT)]
    assert len(set(_asked(server))) == FILES
    assert max(server.sent_bytes_of.values()) < 200_000
    seen = known(catalogue, "first")
    assert scan_night(server, catalogue, "second") == first
    assert _asked(server) == []
    assert known(catalogue, "second") == seen
    change(server, 20)
    assert _codes(scan_night(server, catalogue, "third")) == _codes(first)
    assert len(_asked(server)) == COUNT // 20


def test_what_the_listing_says_is_judged_anew(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, 20)
    assert _codes(scan_night(server, catalogue, "first"))["usable"] == 15
    for repository in server.repositories.values():
        repository.gated = True
    _asked(server)
    assert _codes(scan_night(server, catalogue, "second"))["GATED"] == 18
    assert _asked(server) == []


def test_a_later_reader_reads_again(server: HubServer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(server, 20)
    scan_night(server, catalogue, "first")
    _asked(server)
    monkeypatch.setattr(headers, "READER", headers.READER + 1)
    scan_night(server, catalogue, "second")
    assert len(set(_asked(server))) == 18


def test_a_scan_that_was_stopped_goes_on_where_it_was(server: HubServer, make: Callable[[str], Catalogue]) -> None:
    fill(server, COUNT)
    undisturbed, stopped = make("undisturbed"), make("stopped")
    scan_night(server, undisturbed, "night")
    read: Counter[str] = Counter(_asked(server))

    def stop(what: str, done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with watched(stop), pytest.raises(KeyboardInterrupt):
        scan_night(server, stopped, "stopped")
    scan_night(server, stopped, "night")
    assert Counter(_asked(server)) == read
    assert known(stopped, "night") == known(undisturbed, "night")


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """As in a terminal: a process that a script puts into the background is born deaf to SIGINT."""
    earlier = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, earlier)


@pytest.mark.usefixtures("_interruptible")
def test_a_scan_that_waits_for_the_hub_can_be_stopped(
    server: HubServer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.hub._PATIENCE", Patience())  # other tests need not wait
    fill(server, 60)
    server.limit = RateLimit(requests=40, seconds=600)

    def interrupt(seconds: int) -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        scan_night(server, catalogue, "stopped", Hub(server.endpoint, waiting=interrupt))
    assert time.monotonic() - began < 30
    read = set(_asked(server))
    server.limit = None
    monkeypatch.setattr("catalog.hub._PATIENCE", Patience())
    assert _codes(scan_night(server, catalogue, "night"))["usable"] == 45
    assert len(read & set(_asked(server))) <= 24, "what twelve threads waited for, or had just got"


def test_nobody_asks_before_the_moment_that_the_hub_names(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, 40)
    server.limit = RateLimit(requests=30, seconds=4)
    told: list[int] = []
    found = scan_night(server, catalogue, "night", Hub(server.endpoint, waiting=told.append))
    assert _codes(found)["usable"] == 30
    (seconds,) = told
    assert 2 <= seconds <= 5
    assert all(late < 1 for late in server.limit.too_many), "only what was on its way"


@pytest.mark.slow
def test_eight_processes_with_one_token_keep_to_its_budget(server: HubServer) -> None:
    """Each is told of the pause once, since the Hub tells it only to who asks; nobody asks again before the reset."""
    fill(server, 8)
    server.limit = RateLimit(requests=4, seconds=10)
    code = "import sys; from catalog.hub import Hub; print(Hub(sys.argv[1]).repository(sys.argv[2]).repository)"
    names = list(server.repositories)
    with ThreadPoolExecutor(8) as processes:

        def ask(name: str) -> str:
            command = [sys.executable, "-c", code, server.endpoint, name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

        assert list(processes.map(ask, names)) == names
    assert max(server.asked.values()) <= 2
    assert len(server.limit.too_many) <= 4


@pytest.mark.usefixtures("_in_a_hurry")
@pytest.mark.parametrize("seed", range(2))
def test_trouble_with_one_request_in_five_changes_nothing(
    server: HubServer, make: Callable[[str], Catalogue], seed: int
) -> None:
    fill(server, 300)
    undisturbed, troubled = make("undisturbed"), make("troubled")
    scan_night(server, undisturbed, "night")
    untroubled = len(_asked(server))
    server.trouble = seeded_trouble(seed, 0.2)
    server.asked.clear()
    scan_night(server, troubled, "troubled")
    assert len(_asked(server)) > 1.1 * untroubled
    assert {server.trouble(request, 1) for request in server.asked} == {None, *KINDS}
    server.trouble = nothing_wrong
    scan_night(server, troubled, "night")
    assert known(troubled, "night") == known(undisturbed, "night")


@pytest.mark.usefixtures("_in_a_hurry")
def test_a_hub_that_goes_away_while_it_lists_leaves_what_was_found(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, COUNT)

    def second_page(request: str, time: int) -> Trouble | None:
        return "503" if request == "GET /api/models" and time > 1 else None

    server.trouble = second_page
    first = scan_night(server, catalogue, "first")
    assert (len(first), first[-1].reason and first[-1].reason.code) == (101, "HUB_BUSY")
    server.trouble = nothing_wrong
    assert len(scan_night(server, catalogue, "second")) == COUNT
    assert len(set(_asked(server))) == FILES


@pytest.mark.usefixtures("_in_a_hurry")
def test_a_hub_that_gives_no_file_is_left_alone(
    server: HubServer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    fill(server, COUNT)
    server.failing = {"/resolve/": 503}
    first = scan_night(server, catalogue, "first")
    assert _codes(first)["HUB_BUSY"] == 170, "all but those whose licence decides"
    assert len(_asked(server)) < 2 * (24 + 12 + 1)
    server.failing = {}
    assert _codes(scan_night(server, catalogue, "second"))["usable"] == 150


def test_one_adapter_that_nobody_foresaw_stops_nothing(
    server: HubServer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(server, 20)

    def surprised(header: Header, size_bytes: int, config: Config | None) -> AdapterHeader:
        if header.metadata["number"] == "7000":
            raise ZeroDivisionError
        return describe(header, size_bytes, config)

    monkeypatch.setattr(headers, "describe", surprised)
    assert _codes(scan_night(server, catalogue, "first"))["UNEXPECTED"] == 1
    monkeypatch.undo()
    assert "UNEXPECTED" not in _codes(scan_night(server, catalogue, "second"))


WEIGHTS = "pytorch_lora_weights.safetensors"
SOURCE = {"role": "subject", "repository": "me/dog"}
BASE = "stabilityai/stable-diffusion-xl-base-1.0"
FRONT = {"tags": ["lora"], "license": "mit", "instance_prompt": "a sks dog"}


def _one(server: HubServer, content: bytes, beside: Files | None = None, **front: object) -> Found:
    """What a scan says of one repository with these weights."""
    server.add("me/dog", {"README.md": card(**FRONT | front), WEIGHTS: content} | (beside or {}))
    (found,) = scan.scan(settings_of(SOURCE, Path()), Hub(server.endpoint), None)
    return found


def test_a_card_that_names_no_base_or_a_wrong_one_is_only_a_claim(server: HubServer) -> None:
    found = _one(server, sdxl_weights(1))
    assert (found.status, found.facts["base"], found.facts["card_base_models"]) == ("usable", "sdxl", [])
    assert _one(server, sdxl_weights(1), base_model="runwayml/stable-diffusion-v1-5").status == "usable"
    other = _one(server, sdxl_weights(1).replace(b"[1, 2048]", b"[2, 1024]"), base_model="an/sdxl")
    assert other.reason is not None
    assert other.reason.code == "UNSUPPORTED_LAYOUT", "whose halves do not fit"


def test_shapes_and_card_are_both_told_of_a_wrong_base(server: HubServer) -> None:
    found = _one(server, lora_file({"attn2.to_k": (1, 768)}), base_model="an/sdxl\n")
    assert found.reason is not None
    assert (found.status, found.reason.code) == ("rejected", "BASE_MISMATCH")
    assert "sd1" in found.reason.fact
    assert found.reason.fact.endswith("Its card says an/sdxl.")


def test_what_is_no_lora_is_told_by_its_header_alone(server: HubServer) -> None:
    names = [f"model.diffusion_model.input_blocks.{number}.weight" for number in range(500)]
    found = _one(server, weights_named(dict.fromkeys(names, (1000, 10))))
    assert found.reason is not None
    assert found.reason.code == "NOT_A_LORA"
    assert server.sent_bytes < 400_000, "the header, read twice as of all that is refused"


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_words_of_its_own_make_an_adapter_unsupported(server: HubServer, where: str) -> None:
    inside = {"bundle_emb.sks.clip_l": (2, 768)} if where == "inside" else {}
    beside = {"dog_emb.safetensors": weights_named({"clip_l": (2, 768)})} if where == "beside" else {}
    found = _one(server, lora_file({"attn2.to_k": (1, 2048)}, inside), beside)
    assert found.reason is not None
    assert (found.status, found.reason.code) == ("unsupported", "NEEDS_EMBEDDINGS")


@pytest.mark.parametrize(
    ("metadata", "base_model", "variant"),
    [
        ({}, BASE, ""),
        ({"modelspec.prediction_type": "epsilon", "ss_base_model_version": "sdxl_base_v1-0"}, "", ""),
        ({"modelspec.prediction_type": "v"}, "", "v-prediction"),
        ({"ss_zero_terminal_snr": "True"}, "", "v-prediction"),
        ({"ss_base_model_version": "sd_v2_v"}, "", "v-prediction"),
        ({"ss_sd_model_name": "sd_xl_turbo_1.0_fp16.safetensors"}, "", "distilled"),
        ({}, "ByteDance/SDXL-Lightning", "distilled"),
    ],
)
def test_the_variant_of_the_base_is_told(
    server: HubServer, metadata: dict[str, str], base_model: str, variant: str
) -> None:
    found = _one(server, lora_file({"attn2.to_k": (1, 2048)}, metadata=metadata), base_model=base_model)
    assert (found.status, found.facts["variant"]) == ("usable", variant)


def test_one_file_at_three_places_is_one_adapter(server: HubServer, catalogue: Catalogue) -> None:
    """The third place has no prompt for it, which says nothing against the other two."""
    for name in ("one", "two", "three"):
        front = {"base_model": BASE} | FRONT | ({"instance_prompt": None} if name == "three" else {})
        server.add(f"me/{name}", {"README.md": card(**front), WEIGHTS: sdxl_weights(1)})
    found = scan_night(server, catalogue, "night")
    (only,) = scan.usable(found)
    (known_one,) = usable_adapters(catalogue, "subject")
    assert known_one.sha256 == only.sha256
    assert {alias.repository for alias in known_one.aliases} == {"me/one", "me/two", "me/three"}


def test_a_commit_that_a_squash_removed_is_looked_up_again(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, 1)
    repository = server.repositories["me/lora-00000"]
    stale, files = repository.head, repository.commits[repository.head]

    def squash() -> None:
        repository.add(files | {"notes.txt": b"squashed"})
        repository.commits.pop(stale)

    server.between_pages = squash
    (found,) = scan_night(server, catalogue, "night")
    assert (found.status, found.revision) == ("usable", repository.head)
    assert found.revision != stale
    before = known(catalogue, "night")
    server.between_pages = lambda: None
    scan_night(server, catalogue, "next")
    assert known(catalogue, "next") == before


def test_a_commit_that_stays_gone_is_said(server: HubServer, catalogue: Catalogue) -> None:
    fill(server, 1)
    server.trouble = always("moved")
    assert _codes(scan_night(server, catalogue, "night")) == {"COMMIT_GONE": 1}


def test_a_token_that_is_revoked_in_the_middle_is_said_once(
    server: HubServer, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fill(server, COUNT)
    server.between_pages = lambda: monkeypatch.setenv("HF_TOKEN", "hf_REVOKED")
    found = scan_night(server, catalogue, "night")
    assert _codes(found)["AUTH"] == 1
    assert len(_asked(server)) < COUNT
