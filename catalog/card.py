"""The model card of a repository as facts: claims of a stranger, read with caps, kept only in the right form."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import yaml

from catalog.candidate import CardFacts, Sample
from catalog.facts import Reason

MAX_CARD_BYTES = 1_000_000
_MAX_FRONT_CHARACTERS = 100_000
_MAX_TEXT = 2_000
_MAX_ITEMS = 200
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


class _NoAliases(yaml.SafeLoader):
    """YAML without references, of which a few lines can make gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it refers to another part of itself")
        return super().compose_node(parent, index)


def read_card(content: bytes, siblings: tuple[str, ...]) -> CardFacts:
    """The facts of a README.md; of a broken one, a note and nothing else."""
    if len(content) > MAX_CARD_BYTES:
        return _invalid(f"it has {len(content):,} bytes")
    text = content.decode("utf-8", "replace").lstrip("\ufeff").replace("\r\n", "\n")
    front = re.match(r"---[ \t]*\n(.*?\n)?---[ \t]*(\n|$)", text, re.DOTALL)
    if front is None:
        return CardFacts()
    if len(front[1] or "") > _MAX_FRONT_CHARACTERS:
        return _invalid(f"its front matter has {len(front[1]):,} characters")
    try:
        data = yaml.load(front[1] or "", _NoAliases)  # a SafeLoader, made stricter
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError) as error:
        return _invalid(" ".join(str(error).split())[:200] or type(error).__name__)
    return card_facts(data, siblings)


def card_facts(data: object, siblings: tuple[str, ...]) -> CardFacts:
    """The facts in a card's front matter; `siblings` are the repository's files, of which its pictures must be."""
    if data is None:
        return CardFacts()
    if not isinstance(data, Mapping):
        return _invalid(f"its front matter is a {type(data).__name__}, not a mapping")
    wrong: list[str] = []

    def texts(key: str) -> tuple[str, ...]:
        value = data.get(key)
        items = value if isinstance(value, list) else [value]
        kept = tuple(item.strip()[:_MAX_TEXT] for item in items if isinstance(item, str) and item.strip())
        if any(item is not None and not isinstance(item, str) for item in items):
            wrong.append(key)
        return kept[:_MAX_ITEMS]

    licences = texts("license")
    facts = CardFacts(
        base_models=texts("base_model"),
        licence=licences[0].lower() if len(licences) == 1 else "other" if licences else None,
        instance_prompts=texts("instance_prompt"),
        tags=texts("tags"),
        samples=_samples(data.get("widget"), siblings, wrong.append),
    )
    return replace(facts, notes=(_note(f"The card has {', '.join(wrong)} of the wrong kind."),)) if wrong else facts


def _samples(widget: object, siblings: tuple[str, ...], is_wrong: Callable[[str], None]) -> tuple[Sample, ...]:
    """The pictures of the card's gallery that are files of the repository; we follow no address."""
    if widget is None:
        return ()
    if not isinstance(widget, list):
        is_wrong("widget")
        return ()
    found: dict[str, Sample] = {}
    for entry in widget[:_MAX_ITEMS]:
        output = entry.get("output") if isinstance(entry, Mapping) else None
        url = output.get("url") if isinstance(output, Mapping) else None
        if not isinstance(url, str):
            continue
        path = url.removeprefix("./")
        steps = PurePosixPath(path).parts
        if path not in siblings or ".." in steps or path.startswith("/") or not path.lower().endswith(_PICTURES):
            continue
        prompt = entry.get("text")
        found.setdefault(path, Sample(path, prompt.strip()[:_MAX_TEXT] if isinstance(prompt, str) else ""))
    return tuple(found.values())


def _invalid(trouble: str) -> CardFacts:
    return CardFacts(notes=(_note(f"The card cannot be read: {trouble}."),))


def _note(fact: str) -> Reason:
    return Reason("CARD_INVALID", fact, "say in the settings what the card should say.")
