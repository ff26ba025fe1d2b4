"""A merge goes to the Hub in one commit, once, and only through the gates."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from sqlalchemy import Engine

from catalog import facts, record, schema
from catalog.errors import Refused
from catalog.hub import Hub
from catalog.merge_card import merge_card
from catalog.publish import Policy, publish
from catalog.release import Release

from .gallery_world import HOSTILE
from .hub_contents import TOKEN, HubServer, sha256
from .hub_server import serving
from .releases import COMMIT, release_of
from .samples import DOG, NEON, NOON, merge, result, rows, start

POLICY = Policy("me")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as running:
        yield running


@pytest.fixture
def release(tmp_path: Path) -> Release:
    return release_of(tmp_path)


@pytest.fixture
def ready(catalogue: Engine) -> Engine:
    """A catalogue in which the merge is done."""
    start(catalogue)
    record.record_done(catalogue, merge(), result())
    return catalogue


def _commits(server: HubServer) -> list[str]:
    return [request for request in server.requests if "/commit/" in request]


def _statuses(engine: Engine) -> list[tuple[str, str | None]]:
    return [(row.status, row.commit) for row in rows(engine, schema.Publication)]


def _front(card: str) -> dict[str, Any]:
    front: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return front


def test_a_rehearsal_sends_nothing(server: HubServer, release: Release, ready: Engine) -> None:
    planned = publish(release, POLICY, Hub(server.endpoint), ready)
    assert planned.repository == f"me/dog-neon-ziplora-{release.merge_id[:8]}"
    assert planned.private
    assert planned.commit is None
    assert server.requests == []
    assert _statuses(ready) == []


def test_one_commit_holds_everything(server: HubServer, release: Release, ready: Engine) -> None:
    published = publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert len(_commits(server)) == 1
    repository = server.repositories[published.repository]
    assert repository.private
    assert repository.head == published.commit
    assert repository.tags == {release.tag: published.commit}
    files = repository.commits[repository.head]
    assert (
        set(published.size_bytes)
        == set(files) - {".gitattributes"}
        == {
            "pytorch_lora_weights.safetensors",
            f"kohya/{release.name}.safetensors",
            "coefficients.safetensors",
            "images/0000.png",
            "README.md",
            "provenance.json",
        }
    )
    assert files["coefficients.safetensors"] == release.coefficients.read_bytes()
    statement = json.loads(files["provenance.json"])
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert {one["name"]: one["digest"]["sha256"] for one in statement["subject"]} == {
        path: sha256(content) for path, content in files.items() if path not in (".gitattributes", "provenance.json")
    }
    made = statement["predicate"]["buildDefinition"]
    assert made["externalParameters"] == {"merge_id": release.merge_id, "recipe": release.recipe}
    assert [one["digest"] for one in made["resolvedDependencies"][:2]] == [{"sha256": DOG}, {"sha256": NEON}]
    assert made["resolvedDependencies"][0]["uri"] == f"hf://you/dog-lora@{COMMIT}/dog.safetensors"
    assert _statuses(ready) == [("verified", published.commit)]


def test_a_second_run_makes_no_commit(server: HubServer, release: Release, ready: Engine) -> None:
    hub = Hub(server.endpoint)
    first = publish(release, POLICY, hub, ready, dry_run=False)
    before = len(server.requests)
    second = publish(release, POLICY, hub, ready, dry_run=False)
    assert second == replace(first, was_there=True)
    assert len(server.requests) == before


def test_a_catalogue_that_forgot_finds_its_merge_on_the_hub(server: HubServer, release: Release, ready: Engine) -> None:
    hub = Hub(server.endpoint)
    first = publish(release, POLICY, hub, ready, dry_run=False)
    with ready.begin() as connection:
        connection.exec_driver_sql("DELETE FROM publications")
    second = publish(release, POLICY, hub, ready, dry_run=False)
    assert (second.commit, second.was_there) == (first.commit, True)
    assert len(_commits(server)) == 1
    assert _statuses(ready) == [("verified", first.commit)]


def test_a_commit_whose_answer_was_lost_is_not_made_twice(server: HubServer, release: Release, ready: Engine) -> None:
    server.swallow_commit_answers = 1
    published = publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert not published.was_there
    assert len(_commits(server)) == 1
    assert _statuses(ready) == [("verified", server.repositories[published.repository].head)]


def test_what_is_to_be_private_does_not_go_where_everybody_looks(
    server: HubServer, release: Release, ready: Engine
) -> None:
    server.add(f"me/{release.name}", {".gitattributes": b""})
    with pytest.raises(Refused, match="REPOSITORY_PUBLIC"):
        publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert _commits(server) == []
    publish(release, Policy("me", private=False), Hub(server.endpoint), ready, dry_run=False)
    assert len(_commits(server)) == 1


def test_a_repository_that_was_made_and_left_empty_is_filled(
    server: HubServer, release: Release, ready: Engine
) -> None:
    hub = Hub(server.endpoint)
    hub.create_repository(f"me/{release.name}", private=True)
    assert not publish(release, POLICY, hub, ready, dry_run=False).was_there
    assert len(_commits(server)) == 1


def test_a_card_that_the_hub_would_not_take_costs_no_upload(
    server: HubServer, release: Release, ready: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catalog.publish.merge_card", lambda *_: "---\nwidget: none\n---\n")
    with pytest.raises(Refused, match=r'CARD_REFUSED: .*"widget" must be an array'):
        publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert server.repositories == {}
    assert server.uploads == {}


@pytest.mark.parametrize("held", [{"README.md": b"mine"}, {"provenance.json": b'{"predicate": {}}'}])
def test_a_name_that_is_taken_is_left_alone(
    server: HubServer, release: Release, ready: Engine, held: dict[str, bytes]
) -> None:
    server.add(f"me/{release.name}", held)
    with pytest.raises(Refused, match="NAME_TAKEN"):
        publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert _commits(server) == []


@pytest.mark.parametrize("namespace", ["a--b", "of me", "-me", "me/mine", ""])
def test_a_name_that_the_hub_does_not_take_is_refused(
    server: HubServer, release: Release, ready: Engine, namespace: str
) -> None:
    with pytest.raises(Refused, match="NAME_INVALID"):
        publish(release, Policy(namespace), Hub(server.endpoint), ready, dry_run=False)
    assert server.requests == []
    assert _statuses(ready) == []


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"licence": None}, "LICENCE_UNKNOWN"),
        ({"licence": "other"}, "LICENCE_UNKNOWN"),
        ({"licence": "cc-by-nd-4.0"}, "LICENCE_NO_DERIVATIVES"),
        ({"score_01": None}, "SCORE_MISSING"),
        ({"score_01": 0.49}, "SCORE_LOW"),
    ],
)
def test_the_gates_come_before_everything(
    server: HubServer, release: Release, ready: Engine, changed: dict[str, Any], code: str
) -> None:
    for dry_run in (True, False):
        with pytest.raises(Refused) as caught:
            publish(replace(release, **changed), POLICY, Hub(server.endpoint), ready, dry_run=dry_run)
        assert caught.value.reason.code == code
    assert server.requests == []


@pytest.mark.parametrize(("metric", "code"), [("dino", "SUBJECT_LOST"), ("clip-i", "STYLE_LOST")])
def test_a_merge_that_lost_one_of_its_adapters_is_not_published(
    server: HubServer, release: Release, ready: Engine, metric: str, code: str
) -> None:
    lost = replace(release.scores[0], scorer_id=f"{metric}:tiny", position=0.05)
    vanished = replace(release, scores=(*release.scores, lost), score_01=0.7)
    with pytest.raises(Refused, match=f"{code}: .* is at 0.05"):
        publish(vanished, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert server.requests == []


def test_what_was_taken_back_is_not_sent_again(server: HubServer, release: Release, ready: Engine) -> None:
    taken = facts.Publication(release.merge_id, f"me/{release.name}", "withdrawn", None, NOON)
    record.record_publication(ready, taken)
    with pytest.raises(Refused, match="WITHDRAWN"):
        publish(release, POLICY, Hub(server.endpoint), ready, dry_run=False)
    assert server.requests == []


def test_a_file_that_arrived_wrong_is_not_called_published(
    server: HubServer, release: Release, ready: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(server.endpoint)
    held = dict.fromkeys(("README.md", "coefficients.safetensors"), "0" * 64)
    monkeypatch.setattr(hub, "published_files", lambda *_: held)
    with pytest.raises(Refused, match="PUBLICATION_DIFFERS"):
        publish(release, POLICY, hub, ready, dry_run=False)
    assert [status for status, _ in _statuses(ready)] == ["committed"]


def test_a_card_says_where_it_comes_from(release: Release) -> None:
    card = merge_card(release, "me/dog-neon")
    front = _front(card)
    assert front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert front["license"] == "openrail++"
    assert front["instance_prompt"] == "a sks dog in neon style"
    assert {"template:sd-lora", "lora", "source:you/dog-lora"} <= set(front["tags"])
    assert front["widget"] == [{"text": "a sks dog in neon style", "output": {"url": "images/0000.png"}}]
    assert (
        f'load_lora_weights("me/dog-neon", weight_name="pytorch_lora_weights.safetensors", revision="{release.tag}"'
        in card
    )
    assert f"(https://huggingface.co/you/dog-lora/tree/{COMMIT})" in card
    assert "neon\\-lora (a local folder)" in card
    assert "| the subject's pictures | 0.300 | 0.600 | 0.800 | 0.600 | 4 |" in card
    assert "The same restrictions hold" in card
    free = replace(release, licence="mit", style=replace(release.style, licence="mit"))
    assert "The same restrictions hold" not in merge_card(free, "me/dog-neon")


@pytest.mark.parametrize(
    "name", [*HOSTILE, "](javascript:alert(1))", "a\n---\nlicense: mit\n", "```\n# x", "|a|b|", "<!--"]
)
def test_names_of_strangers_are_text(release: Release, name: str) -> None:
    parent = replace(release.subject, name=name, repository=name, file_name=name, prompt=name, licence=name)
    recipe = {"prompt": name, name: 1}
    hostile = replace(release, subject=parent, recipe=recipe, prompt=name, base_model=name)
    card = merge_card(hostile, "me/x")
    front = _front(card)
    assert front["license"] == "openrail++"
    assert "base_model" not in front
    text = card.split("---\n", 2)[2]
    harmless = text.replace("<Gallery />", "").replace("<code>", "").replace("</code>", "")
    assert "<" not in harmless.split("```json")[0]
    assert "](javascript" not in text.split("```json")[0]
    assert text.count("```") == 4
    assert len(hostile.name) <= 96
    assert hostile.name == hostile.name.strip("-.")
