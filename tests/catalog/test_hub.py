"""The door to the Hub, held against a Hub on this machine by way of the real client."""

import gzip
import logging
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from huggingface_hub.utils import httpx

from catalog.candidate import Candidate, Unfit
from catalog.errors import CatalogueError, Refused
from catalog.facts import Reason
from catalog.folder import sha256_of
from catalog.hub import FIRST_READ_BYTES, Hub
from catalog.patience import Patience

from .hub_contents import TOKEN, HubServer, Passing, Trouble, always, sha256
from .hub_server import serving
from .lora_files import card, weights

WEIGHTS = "pytorch_lora_weights.safetensors"
BASE = "stabilityai/stable-diffusion-xl-base-1.0"


@pytest.fixture
def server() -> Iterator[HubServer]:
    with serving() as running:
        yield running


@pytest.fixture
def hub(server: HubServer) -> Hub:
    return Hub(server.endpoint)


def _dog(server: HubServer, content: bytes, name: str = "me/dog") -> None:
    front = card(base_model=BASE, tags=["lora"], license="Apache-2.0", instance_prompt="a sks dog")
    server.add(name, {"README.md": front, WEIGHTS: content})


def _candidate(found: Candidate | Unfit) -> Candidate:
    assert isinstance(found, Candidate)
    return found


def _refusal(found: Candidate | Unfit) -> Reason:
    assert isinstance(found, Unfit)
    return found.reason


def test_a_search_costs_one_request_for_each_page(server: HubServer, hub: Hub) -> None:
    for number in range(25):
        _dog(server, weights(), f"me/dog-{number:02}")
    server.add("you/no-lora", {"README.md": card(tags=["vae"])})
    server.page = 10
    found = [_candidate(one) for one in hub.search(base_model=BASE)]
    assert [one.repository for one in found] == [f"me/dog-{number:02}" for number in range(25)]
    assert server.requests == ["GET /api/models"] * 3
    first = found[0]
    assert first.revision == server.repositories["me/dog-00"].head
    assert (first.file_name, first.sha256, first.size_bytes) == (WEIGHTS, None, None)
    assert (first.card.licence, first.card.instance_prompts) == ("apache-2.0", ("a sks dog",))
    assert f"base_model:adapter:{BASE}" in first.card.tags
    assert first.modified_at is not None


def test_a_search_stops_at_its_limit(server: HubServer, hub: Hub) -> None:
    for number in range(25):
        _dog(server, weights(), f"me/dog-{number:02}")
    server.page = 10
    assert len(list(hub.search(limit=12))) == 12
    assert len(server.requests) == 2
    assert [one.repository for one in hub.search(author="me", text="dog-03")] == ["me/dog-03"]


def test_a_listing_that_changes_while_its_pages_are_turned_names_nothing_twice(server: HubServer, hub: Hub) -> None:
    for number in range(25):
        _dog(server, weights(), f"me/dog-{number:02}")
    server.page = 10

    def one_more_in_front() -> None:
        before = dict(server.repositories)
        server.repositories.clear()
        _dog(server, weights(), f"me/puppy-{len(before)}")
        server.repositories.update(before)

    server.between_pages = one_more_in_front
    found = [_candidate(one).repository for one in hub.search()]
    assert found == [f"me/dog-{number:02}" for number in range(25)]


def test_one_broken_entry_does_not_end_a_listing(server: HubServer, hub: Hub) -> None:
    hostile = {"ignore_metadata_errors": 1, "tags": ["lora", {"a": []}], "widget": 7, "model-index": 3, "license": [1]}
    server.add("bad/card", {"README.md": card(**hostile), WEIGHTS: weights()})
    server.add("bad/pickle", {"README.md": card(tags=["lora"]), "pytorch_lora_weights.bin": b"\x80\x04"})
    _dog(server, weights())
    broken, pickle, sound = hub.search()
    assert [note.code for note in _candidate(broken).card.notes] == ["CARD_INVALID"]
    assert _refusal(pickle).code == "PICKLE_REFUSED"
    assert _candidate(sound).repository == "me/dog"


def test_a_header_costs_one_small_request(server: HubServer, hub: Hub) -> None:
    content = weights(filler=500_000)
    _dog(server, content)
    start = hub.start_of(_candidate(hub.repository("me/dog")))
    assert start.content == content[:FIRST_READ_BYTES]
    assert (start.candidate.size_bytes, start.candidate.sha256) == (len(content), sha256(content))
    assert server.sent_bytes == FIRST_READ_BYTES
    assert [request for request in server.requests if "/resolve/" in request] == [
        f"GET /me/dog/resolve/{server.repositories['me/dog'].head}/{WEIGHTS}"
    ]


def test_the_line_stays_open_from_file_to_file(server: HubServer, hub: Hub) -> None:
    for number in range(8):
        _dog(server, weights(filler=500_000), f"me/dog-{number}")
    dogs = [_candidate(one) for one in hub.search()]
    server.lines.clear()
    for dog in dogs:
        hub.start_of(dog)
    assert len(server.lines) == 1


def test_a_long_header_costs_a_second_request(server: HubServer, hub: Hub) -> None:
    content = weights(filler=500_000, metadata="x" * 198_000)
    _dog(server, content)
    start = hub.start_of(_candidate(hub.repository("me/dog")))
    header_bytes = 8 + int.from_bytes(content[:8], "little")
    assert start.content == content[:header_bytes]
    assert server.sent_bytes == header_bytes < 200_000


@pytest.mark.parametrize("length", [10_000_001, 1 << 62])
def test_a_header_that_claims_to_be_huge_is_not_fetched(server: HubServer, hub: Hub, length: int) -> None:
    _dog(server, length.to_bytes(8, "little") + b"{" + bytes(20_000_000))
    assert len(hub.start_of(_candidate(hub.repository("me/dog"))).content) == FIRST_READ_BYTES
    assert server.sent_bytes == FIRST_READ_BYTES


def test_an_empty_file_has_a_start(server: HubServer, hub: Hub) -> None:
    _dog(server, b"")
    start = hub.start_of(_candidate(hub.repository("me/dog")))
    assert (start.content, start.candidate.size_bytes) == (b"", 0)


def test_the_file_beside_the_weights_is_read_if_it_is_there(server: HubServer, hub: Hub) -> None:
    server.add("me/dog", {WEIGHTS: weights(), "adapter_config.json": b"{}", "large.json": bytes(1_000_001)})
    dog = _candidate(hub.repository("me/dog"))
    assert hub.small_file(dog, "adapter_config.json") == b"{}"
    assert hub.small_file(dog, "large.json") is None
    before = len(server.requests)
    assert hub.small_file(dog, "no.json") is None
    assert len(server.requests) == before


def test_a_download_is_pinned_and_compared(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    content = weights(filler=5_000)
    _dog(server, content)
    dog = hub.start_of(_candidate(hub.repository("me/dog"))).candidate
    server.repositories["me/dog"].add({WEIGHTS: weights(filler=9)})  # the branch moves on
    path = hub.download(dog, tmp_path / "adapters")
    assert path == tmp_path / "adapters" / f"{sha256(content)}.safetensors"
    assert path.read_bytes() == content
    before = len(server.requests)
    assert hub.download(dog, tmp_path / "adapters") == path
    assert len(server.requests) == before
    assert [entry.name for entry in (tmp_path / "adapters").iterdir()] == [path.name]


def test_a_file_outside_lfs_is_known_by_its_own_hash(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    server.add("me/dog", {"small.safetensors.txt": b"", "dog.SAFETENSORS": weights()})
    start = hub.start_of(_candidate(hub.repository("me/dog")))
    assert start.candidate.sha256 is None
    path = hub.download(start.candidate, tmp_path)
    assert path.stem == sha256_of(path) == sha256(weights())


def test_wrong_bytes_of_the_right_length_are_refused(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    _dog(server, weights())
    dog = hub.start_of(_candidate(hub.repository("me/dog"))).candidate
    server.repositories["me/dog"].tampered.add(WEIGHTS)
    with pytest.raises(Refused, match="HASH_MISMATCH") as caught:
        hub.download(dog, tmp_path)
    assert caught.value.reason.code == "HASH_MISMATCH"
    assert len([request for request in server.requests if request.startswith("GET /me/dog/resolve")]) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_comes_short_is_refused(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    _dog(server, weights(filler=5_000))
    dog = hub.start_of(_candidate(hub.repository("me/dog"))).candidate
    server.repositories["me/dog"].truncated.add(WEIGHTS)
    with pytest.raises(Refused, match="FILE_TRUNCATED"):
        hub.download(dog, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_gated_repository_is_not_a_missing_one(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    _dog(server, weights())
    server.repositories["me/dog"].gated = True
    dog = _candidate(hub.repository("me/dog"))
    assert dog.gated
    for reading in (lambda: hub.start_of(dog), lambda: hub.download(dog, tmp_path)):
        with pytest.raises(Refused, match=r"GATED: .* https://huggingface\.co/me/dog"):
            reading()


def test_what_is_missing_says_how(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _dog(server, weights())
    with pytest.raises(Refused, match=r"HIDDEN: .*me/cat"):
        hub.repository("me/cat")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(Refused, match=r"GONE: .*me/cat"):
        hub.repository("me/cat")
    with pytest.raises(Refused, match=r"COMMIT_GONE: .*0000"):
        hub.repository("me/dog", "0000")
    assert _refusal(hub.repository("me/dog", file_name="cat.safetensors")).code == "FILE_MISSING"


def test_a_commit_that_is_gone_is_no_missing_repository(server: HubServer, hub: Hub, tmp_path: Path) -> None:
    _dog(server, weights())
    dog = _candidate(hub.repository("me/dog"))
    server.repositories["me/dog"].commits.clear()
    server.repositories["me/dog"].add({"README.md": b"squashed"})
    for reading in (lambda: hub.start_of(dog), lambda: hub.download(dog, tmp_path)):
        with pytest.raises(Refused, match="COMMIT_GONE"):
            reading()


def test_the_token_is_taken_from_the_environment_and_told_to_nobody(
    server: HubServer,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    assert hub.check_token() is None
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert hub.check_token() == "me"
    wrong = "hf_WRONG9876543210"
    monkeypatch.setenv("HF_TOKEN", wrong)
    _dog(server, weights())
    for asking in (hub.check_token, lambda: list(hub.search()), lambda: hub.repository("me/dog")):
        with pytest.raises(CatalogueError, match="AUTH: ") as caught:
            asking()
        assert wrong not in str(caught.value)
    told = caplog.text + "".join(capfd.readouterr())
    assert wrong not in told
    assert TOKEN not in told


def test_a_busy_hub_is_not_the_fault_of_a_repository(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", ())
    _dog(server, weights())
    for status in (429, 503):
        server.failing = {"/api/models/": status}
        with pytest.raises(CatalogueError, match=f"HUB_BUSY: The Hub answers {status}") as caught:
            hub.repository("me/dog")
        assert not isinstance(caught.value, Refused)


@pytest.mark.parametrize("kind", get_args(Passing))
def test_trouble_that_passes_is_not_seen(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch, kind: Passing
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr("catalog.hub._MAX_READ_SECONDS", 0.1)
    content = weights(filler=5_000)
    _dog(server, content)

    def first_time(request: str, time: int) -> Trouble | None:
        return kind if time == 1 else None

    server.trouble = first_time
    (dog,) = hub.search()
    start = hub.start_of(_candidate(dog))
    assert (start.content, start.candidate.sha256) == (content, sha256(content))


def test_a_file_that_always_comes_short_is_not_blamed_on_its_author(
    server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", (0.01,))
    _dog(server, weights(filler=5_000))
    server.repositories["me/dog"].truncated.add(WEIGHTS)
    with pytest.raises(Refused, match=r"FILE_TRUNCATED: .* shorter than the Hub promises.* next night tries again"):
        hub.start_of(_candidate(hub.repository("me/dog")))


def test_what_always_drips_is_given_up(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", ())
    monkeypatch.setattr("catalog.hub._MAX_READ_SECONDS", 0.1)
    _dog(server, weights(filler=500_000))
    server.trouble = always("slow")
    for asking in (lambda: list(hub.search()), lambda: hub.repository("me/dog")):
        with pytest.raises(CatalogueError, match=r"HUB_UNREACHABLE: .*ReadTimeout"):
            asking()


def test_a_chain_of_addresses_without_end_is_left(server: HubServer, hub: Hub) -> None:
    _dog(server, weights())
    dog = _candidate(hub.repository("me/dog"))
    server.trouble = always("renamed")
    with pytest.raises(Refused, match=r"HUB_REFUSED: .*TooManyRedirects"):
        hub.start_of(dog)


def test_what_unpacks_without_end_is_cut(server: HubServer, hub: Hub) -> None:
    _dog(server, gzip.compress(bytes(300_000_000), compresslevel=6))
    server.repositories["me/dog"].packed.add(WEIGHTS)
    dog = _candidate(hub.repository("me/dog"))
    tracemalloc.start()
    start = hub.start_of(dog)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(start.content) == FIRST_READ_BYTES
    assert peak_bytes < 150_000_000


def test_a_page_instead_of_a_listing_is_no_hub(server: HubServer, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.catalog.hub_server.json.dumps", lambda _: "<html>please sign in</html>")
    with pytest.raises(CatalogueError, match=r"HUB_UNREACHABLE: .*JSONDecodeError"):
        list(hub.search())


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (200, {"RateLimit": '"resolvers";r=12;t=55'}, 0),
        (200, {"RateLimit": '"resolvers";r=0;t=55'}, 56),
        (429, {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 8),
        (429, {"Retry-After": "42"}, 43),
        (503, {"Retry-After": "2"}, 3),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (301, {"Retry-After": "2"}, 0),
    ],
)
def test_the_pause_is_what_the_hub_says(status: int, headers: dict[str, str], seconds: int) -> None:
    patience = Patience()
    assert patience.heed(httpx.Response(status, headers=headers)) == seconds
    assert patience.heed(httpx.Response(status, headers=headers)) == 0, "all know by now"


def test_a_hub_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catalog.patience.PAUSES_SECONDS", ())
    with pytest.raises(CatalogueError, match=r"HUB_UNREACHABLE: .*ConnectError"):
        Hub("http://127.0.0.1:9").repository("me/dog")
