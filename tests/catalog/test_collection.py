"""Many merges in one repository, a folder and a commit each."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml
from sqlalchemy import Engine

from catalog import collection, facts, record, schema
from catalog.collection import INDEX, collection_name, read_index, write_index
from catalog.collection_card import collection_card
from catalog.errors import Refused
from catalog.hub import Hub
from catalog.publish import Policy, publish
from catalog.release import Release

from .hub_contents import TOKEN, HubServer
from .hub_server import serving
from .releases import release_of
from .samples import DOG, NEON, NOON, merge, result, rows, start

POLICY = Policy("me", collection="ziplora-{style}")
PLACE = "me/ziplora-neon"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def ready(tmp_path: Path) -> Engine:
    engine = schema.open_catalogue(f"sqlite:///{tmp_path / 'catalog.sqlite'}", migrate=True)
    start(engine)
    for method in ("ziplora", "direct", "ties"):
        record.record_done(engine, merge(DOG, NEON, method), result())
    return engine


@pytest.fixture
def releases(tmp_path: Path) -> list[Release]:
    """The dog in neon by three methods."""
    first = release_of(tmp_path)
    methods = (("ziplora", 0.7), ("direct", 0.6), ("ties", 0.8))
    return [
        replace(first, merge_id=merge(DOG, NEON, method).merge_id, method=method, score_01=score)
        for method, score in methods
    ]


def _commits(server: HubServer) -> list[str]:
    return [request for request in server.requests if "/commit/" in request]


def test_each_merge_comes_in_one_commit_with_the_card_of_all(
    server: HubServer, releases: list[Release], ready: Engine
) -> None:
    hub = Hub(server.endpoint)
    published = [publish(release, POLICY, hub, ready, dry_run=False) for release in releases]
    repository = server.repositories[PLACE]
    assert repository.private
    assert len(_commits(server)) == 3
    assert [one.commit for one in published] == list(repository.commits)[1:]
    assert repository.tags == {
        release.tag: one.commit for release, one in zip(releases, published, strict=True) if one.commit
    }
    for number, commit in enumerate(list(repository.commits)[1:], 1):
        files = repository.commits[commit]
        assert {path.partition("/")[0] for path in files} == {
            ".gitattributes",
            "README.md",
            INDEX,
            *(release.name for release in releases[:number]),
        }
        assert [one.merge_id for one in read_index(files[INDEX])] == [one.merge_id for one in releases[:number]]
    own = {path for path in repository.commits[repository.head] if path.startswith(f"{releases[0].name}/")}
    assert own == set(published[0].size_bytes)
    assert {row.status for row in rows(ready, schema.Publication)} == {"verified"}
    assert {row.repository for row in rows(ready, schema.Publication)} == {PLACE}


def test_the_card_shows_all_merges_and_the_best_first(
    server: HubServer, releases: list[Release], ready: Engine
) -> None:
    hub = Hub(server.endpoint)
    for release in releases:
        publish(release, POLICY, hub, ready, dry_run=False)
    files = server.repositories[PLACE].commits[server.repositories[PLACE].head]
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    best = releases[2]
    assert front["license"] == "openrail++"
    assert front["base_model"] == ["stabilityai/stable-diffusion-xl-base-1.0"]
    assert front["widget"][0] == {"text": best.prompt, "output": {"url": f"{best.name}/images/0000.png"}}
    assert all(one["output"]["url"] in files for one in front["widget"])
    table = [line for line in card.splitlines() if line.startswith("| dog × neon")]
    assert [line.split(" | ")[1] for line in table] == ["ties", "ziplora", "direct"]
    load = f'load_lora_weights("{PLACE}", subfolder="{best.name}", weight_name="pytorch_lora_weights.safetensors"'
    assert f'{load}, revision="{best.tag}")' in card
    assert f'{load}, revision="{best.tag}")' in files[f"{best.name}/README.md"].decode()


def test_merges_under_several_licences_have_one_card_that_says_so(releases: list[Release]) -> None:
    members = [collection.member(replace(one, licence=name), 8) for one, name in zip(releases, "abc", strict=True)]
    front = yaml.safe_load(collection_card(members, PLACE).split("---\n")[1])
    assert (front["license"], front["license_name"]) == ("other", "that-of-each-merge")


def test_what_others_commit_in_the_meantime_is_kept(
    server: HubServer, releases: list[Release], ready: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, other = Hub(server.endpoint), Hub(server.endpoint)
    publish(releases[0], POLICY, hub, ready, dry_run=False)
    check_card, waiting = hub.check_card, [releases[1]]

    def at_the_last_moment(card: str) -> None:
        check_card(card)
        if waiting:
            publish(waiting.pop(), POLICY, other, ready, dry_run=False)

    monkeypatch.setattr(hub, "check_card", at_the_last_moment)
    publish(releases[2], POLICY, hub, ready, dry_run=False)
    head = server.repositories[PLACE].commits[server.repositories[PLACE].head]
    assert [one.method for one in read_index(head[INDEX])] == ["ziplora", "direct", "ties"]
    assert len(server.repositories[PLACE].commits) == 1 + 3
    assert len(_commits(server)) == 4  # one of which the Hub refused
    assert head["README.md"].decode().count("| dog × neon") == 3


def test_a_commit_whose_answer_was_lost_is_not_made_twice(
    server: HubServer, releases: list[Release], ready: Engine
) -> None:
    server.swallow_commit_answers = 1
    published = publish(releases[0], POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert (published.commit, published.was_there) == (server.repositories[PLACE].head, False)
    assert len(_commits(server)) == 1


def test_a_catalogue_that_forgot_finds_its_merge_under_its_old_name(
    server: HubServer, releases: list[Release], ready: Engine
) -> None:
    hub = Hub(server.endpoint)
    publish(releases[0], POLICY, hub, ready, dry_run=False)
    with ready.begin() as connection:
        connection.exec_driver_sql("DELETE FROM publications")
    renamed = replace(releases[0], subject=replace(releases[0].subject, name="hound"))
    assert publish(renamed, POLICY, hub, ready, dry_run=False).was_there
    assert len(_commits(server)) == 1


def test_a_merge_that_was_on_its_way_last_month_goes_on_there(
    server: HubServer, releases: list[Release], ready: Engine
) -> None:
    on_its_way = facts.Publication(releases[0].merge_id, "me/of-2026-10", "staged", None, NOON)
    record.record_publication(ready, on_its_way)
    published = publish(releases[0], Policy("me", collection="of-{month}"), Hub(server.endpoint), ready, dry_run=False)
    assert published.repository == "me/of-2026-10"
    assert collection_name("of-{month}", releases[0], date(2026, 11, 24)) == "of-2026-11"
    later = publish(releases[1], Policy("me", collection="of-{month}"), Hub(server.endpoint), ready, dry_run=False)
    assert later.repository == f"me/of-{datetime.now(UTC):%Y-%m}"


@pytest.mark.parametrize(
    "held", [{"README.md": b"mine"}, {INDEX: b"no list"}, {INDEX: b'{"merge_id": 1}\n'}, {INDEX: b"[" * 99_999}]
)
def test_a_name_that_is_taken_is_left_alone(
    server: HubServer, releases: list[Release], ready: Engine, held: dict[str, bytes]
) -> None:
    server.add(PLACE, held)
    with pytest.raises(Refused, match="NAME_TAKEN"):
        publish(releases[0], POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert _commits(server) == []
    assert rows(ready, schema.Publication) == []


@pytest.mark.parametrize(("count", "files", "what"), [(3_998, 8, None), (3_999, 8, "commits"), (3_199, 26, "files")])
def test_a_repository_is_full_before_the_hub_says_so(
    server: HubServer, releases: list[Release], ready: Engine, count: int, files: int, what: str | None
) -> None:
    one = collection.member(releases[1], files)
    members = [replace(one, merge_id=f"{number:064}") for number in range(count)]
    server.add(PLACE, {INDEX: write_index(members)}).private = True
    if what is None:
        publish(releases[0], POLICY, Hub(server.endpoint), ready, dry_run=False)
        return
    with pytest.raises(Refused, match=f"REPOSITORY_FULL: .* {what}, and the Hub asks for less"):
        publish(releases[0], POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert _commits(server) == []
    assert rows(ready, schema.Publication) == []  # so that another name can be chosen


def test_the_folder_limit_counts_too(monkeypatch: pytest.MonkeyPatch, releases: list[Release]) -> None:
    monkeypatch.setitem(collection._MOST, "entries in a folder", 10)  # noqa: SLF001 - commits end earlier otherwise
    members = [collection.member(releases[0], 8)] * 6
    with pytest.raises(Refused, match="9 entries in a folder, and the Hub asks for less than 10"):
        collection.check_room(PLACE, members)
    collection.check_room(PLACE, members[1:])


def test_two_pairs_of_one_name_have_folders_and_repositories_of_their_own(releases: list[Release]) -> None:
    twins = [
        replace(releases[0], subject=replace(releases[0].subject, name=name), merge_id=facts.key(name))
        for name in ("Dog!", "dog?", "DOG", "犬", "狗")
    ]
    assert len({twin.name for twin in twins}) == 5
    assert len({twin.name[:-9] for twin in twins[:3]}) == 1
    assert all(twin.name.endswith(twin.merge_id[:8]) for twin in twins)


def test_provenance_of_a_folder_names_its_files(server: HubServer, releases: list[Release], ready: Engine) -> None:
    publish(releases[0], POLICY, Hub(server.endpoint), ready, dry_run=False)
    files = server.repositories[PLACE].commits[server.repositories[PLACE].head]
    folder = releases[0].name
    named = {one["name"] for one in json.loads(files[f"{folder}/provenance.json"])["subject"]}
    own = {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}
    assert named == own - {"provenance.json"}
