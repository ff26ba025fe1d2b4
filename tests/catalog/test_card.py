"""What strangers write into cards: kept if it has the right form, noted if not, and never in the way of the weights."""

import time

import pytest

from catalog.candidate import CardFacts, Sample
from catalog.card import read_card

FILES = ("README.md", "images/0.png", "images/1.PNG", "notes.txt", "../up.png", "/etc/passwd.png")
SOUND = b"""---
base_model: stabilityai/stable-diffusion-xl-base-1.0
license: OpenRAIL++
instance_prompt: "a sks dog"
tags: [lora, template:sd-lora]
widget:
- {text: a dog, output: {url: images/0.png}}
- {text: null, output: {url: ./images/1.PNG}}
- {text: again, output: {url: images/0.png}}
- {text: not a picture, output: {url: notes.txt}}
- {text: not here, output: {url: images/2.png}}
- {text: elsewhere, output: {url: "https://example.org/spy.png"}}
- {text: up, output: {url: ../up.png}}
- {text: root, output: {url: /etc/passwd.png}}
- 7
---
# Title
"""


def test_a_sound_card_gives_its_facts() -> None:
    assert read_card(SOUND, FILES) == CardFacts(
        base_models=("stabilityai/stable-diffusion-xl-base-1.0",),
        licence="openrail++",
        instance_prompts=("a sks dog",),
        tags=("lora", "template:sd-lora"),
        samples=(Sample("images/0.png", "a dog"), Sample("images/1.PNG", "")),
    )


@pytest.mark.parametrize("content", [b"", b"# No front matter", b"---\n---\n", b"text\n---\nlicense: mit\n---\n"])
def test_a_card_without_facts_is_no_fault(content: bytes) -> None:
    assert read_card(content, FILES) == CardFacts()


@pytest.mark.parametrize("content", [SOUND.replace(b"\n", b"\r\n"), b"\xef\xbb\xbf" + SOUND])
def test_line_ends_and_marks_of_other_systems_do_not_matter(content: bytes) -> None:
    assert read_card(content, FILES) == read_card(SOUND, FILES)


BOMB = b"---\na: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join([f'*{chr(97 + n)}'] * 8)}]\n".encode() for n in range(12)
)


@pytest.mark.parametrize(
    "front",
    [
        b"a: [",
        b"a: b: c",
        b"- a list",
        b"just text",
        b"42",
        b"!!python/object/apply:os.system ['touch /tmp/owned']",
        b"license: !!python/name:os.system",
        b"a: &x [*x]",
        b"? [1, 2]\n: 3\n? {a: b}\n: c",
        b"\x00",
        b"[" * 5000,
        b"a: " + b"x" * 100_001,
        b"date: 2024-99-99",
        b"number: " + b"9" * 5_000,
        b"%YAML 9.9",
        b"a: 'unclosed",
        b"\ttab: 1",
        b"a: *nowhere",
        b"{a: b",
        b"key: 'it''s",
        b'text: "\\q"',
        b"a: |2\n x",
        b"%TAG ! tag:x,2000:\n!",
        b"!!binary 'x'",
        b"a:\n  b: 1\n c: 2",
        b"@at: 1",
        b"`tick`: 1",
        b"a: }",
        b"<<: 7",
    ],
)
def test_a_broken_card_is_a_note(front: bytes) -> None:
    began = time.process_time()
    facts = read_card(b"---\n" + front + b"\n---\n", FILES)
    assert [note.code for note in facts.notes] == ["CARD_INVALID"]
    assert facts == CardFacts(notes=facts.notes)
    assert time.process_time() - began < 3


def test_a_bomb_and_a_flood_do_not_go_off() -> None:
    began = time.process_time()
    for content in (BOMB + b"---\n", b"---\n" + b"a: b\n" * 10_000_000 + b"---\n"):
        assert [note.code for note in read_card(content, FILES).notes] == ["CARD_INVALID"]
    assert time.process_time() - began < 3


@pytest.mark.parametrize(
    ("front", "wrong"),
    [
        (b"widget: images/0.png", "widget"),
        (b"license: 7", "license"),
        (b"tags: [lora, {a: b}]", "tags"),
        (b"base_model: {name: x}", "base_model"),
        (b"instance_prompt: [a dog, 3]", "instance_prompt"),
    ],
)
def test_facts_of_the_wrong_kind_are_named_and_the_others_kept(front: bytes, wrong: str) -> None:
    facts = read_card(b"---\n" + front + b"\nlibrary_name: diffusers\n---\n", FILES)
    (note,) = facts.notes
    assert note.fact == f"The card has {wrong} of the wrong kind."
    assert facts.tags == (("lora",) if wrong == "tags" else ())


@pytest.mark.parametrize(
    ("said", "licence"),
    [(b"mit", "mit"), (b"[MIT]", "mit"), (b"[mit, apache-2.0]", "other"), (b"", None), (b"null", None), (b"[]", None)],
)
def test_several_licences_are_none_that_we_know(said: bytes, licence: str | None) -> None:
    assert read_card(b"---\nlicense: " + said + b"\n---\n", FILES).licence == licence
