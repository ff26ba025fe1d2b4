"""Whose LoRAs nobody should merge without being asked: those that an operator denies, and what is not for everybody.

Words are looked for in what strangers write, however they spell it. A bland name hides anything from this: the Hub's
own tag and an operator's list of repositories are what can be relied on.
"""

import re
import unicodedata
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from catalog.candidate import Candidate
from catalog.facts import Reason

NOT_FOR_ALL = "not-for-all-audiences"
DENIED_WORDS = (
    *("nsfw", "nude", "nudity", "naked", "porn", "pornography", "hentai", "sex", "sexual", "erotic"),
    *("loli", "lolicon", "shota", "shotacon", "underage", "child abuse"),
    *("celebrity", "deepfake", "real person", "likeness"),
)
"""What speaks of sexual content, of minors in it, or of a living person's likeness."""

_LOOKALIKES = str.maketrans("013457@$!|", "oleastasil")
_DOUBLED = re.compile(r"(.)\1+")
_NEXT = "leave it out, or name its repository in policy.trusted if it is yours or its people agreed."


@dataclass(frozen=True)
class Consent:
    """What an operator says of repositories, by patterns of their full names, and of words."""

    trusted: tuple[str, ...] = ()
    denied: tuple[str, ...] = ()
    denied_words: tuple[str, ...] = DENIED_WORDS


def consent_gate(offer: Candidate, prompts: Collection[str], consent: Consent) -> Reason | None:
    """Why an adapter is not merged with anything; None when it may be. Denial goes before trust, trust before words."""
    if _matches(offer.repository, consent.denied):
        return Reason("CONSENT", "The settings deny its repository.", "nothing: policy.denied says so.")
    if _matches(offer.repository, consent.trusted):
        return None
    if NOT_FOR_ALL in offer.card.tags:
        return Reason("CONSENT", f"Its page is tagged {NOT_FOR_ALL}.", _NEXT)
    said = {"name": [offer.repository, offer.file_name], "tags": offer.card.tags, "trigger prompt": prompts}
    for where, texts in said.items():
        for text in texts:
            word = _denied_word(text, consent.denied_words)
            if word is not None:
                return Reason("CONSENT", f"Its {where} speaks of {word!a}.", _NEXT)
    return None


def _matches(repository: str, patterns: Collection[str]) -> bool:
    return any(fnmatchcase(repository.casefold(), pattern.casefold()) for pattern in patterns)


def _denied_word(text: str, terms: tuple[str, ...]) -> str | None:
    """The first of these terms whose words stand in a text, one after the other."""
    if not terms:
        return None
    found = _any_of(terms).search(_plain(text)) or _any_of(terms).search(_plain(text.translate(_LOOKALIKES)))
    return found and next(term for term in terms if _plain(term) == found[0])


@lru_cache
def _any_of(terms: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(_plain, terms)))


@lru_cache(maxsize=10_000)  # the same tags are met again and again
def _plain(text: str) -> str:
    """A text's words between blanks: without accents, capitals, plurals, doubled letters, and gaps between letters."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    bare = "".join(one for one in unicodedata.normalize("NFKD", apart) if not unicodedata.combining(one))
    words = [_DOUBLED.sub(r"\1", word).rstrip("s") for word in _closed_up(re.findall(r"[a-z]+", bare.casefold()))]
    return f" {' '.join(words)} "


def _closed_up(words: list[str]) -> Iterator[str]:
    """The same, with a run of single letters as one word."""
    run = ""
    for word in [*words, ""]:
        if len(word) == 1:
            run += word
            continue
        if run:
            yield run
            run = ""
        if word:
            yield word
