"""What is denied, what is not for everybody, and what an operator vouches for."""

import pytest

from catalog.candidate import Candidate, CardFacts
from catalog.consent import DENIED_WORDS, NOT_FOR_ALL, Consent, consent_gate


def offered(repository: str = "you/teapot-lora", *tags: str, file_name: str = "lora.safetensors") -> Candidate:
    return Candidate(repository, "local", file_name, 1, "0" * 64, CardFacts(tags=tags), (file_name,))


def refused(offer: Candidate, *prompts: str, consent: Consent | None = None) -> bool:
    reason = consent_gate(offer, prompts, consent or Consent())
    assert reason is None or reason.code == "CONSENT"
    return reason is not None


@pytest.mark.parametrize(
    "name",
    [
        "you/nsfw-girls-lora",
        "you/NSFW_v2",
        "you/NsfwStyle",
        "you/n.s.f.w-lora",
        "you/n5fw",
        "you/nnsffw",
        "you/p0rn-star",
        "you/ñsfw",
        "you/ⓝⓢⓕⓦ",
        "you/real-person-pack",
        "you/some-celebritys",
        "you/l0li",
        "nude/teapot",
    ],
)
def test_a_word_is_seen_however_it_is_spelt(name: str) -> None:
    assert refused(offered(name))


@pytest.mark.parametrize(
    "name",
    ["you/essex-landscapes", "you/lollipop", "you/nudel-soup", "you/a-b-c-letters", "you/unreal-personas", "you/dog"],
)
def test_a_word_within_another_is_none(name: str) -> None:
    assert not refused(offered(name))


def test_prompts_tags_and_file_names_are_looked_at_too() -> None:
    assert refused(offered(), "a sks NUDE woman")
    assert refused(offered("you/teapot-lora", "lora", "deepfake"))
    assert refused(offered(file_name="hentai.safetensors"))
    assert not refused(offered("you/teapot-lora", "lora"), "a sks teapot")


def test_what_the_hub_tags_is_held_back_whatever_its_name() -> None:
    assert refused(offered("you/teapot-lora", NOT_FOR_ALL))


def test_trust_lifts_tag_and_words_and_denial_goes_before_trust() -> None:
    trusting = Consent(trusted=("me/*",))
    assert not refused(offered("me/nsfw-lora", NOT_FOR_ALL), "nude", consent=trusting)
    assert not refused(offered("Me/nsfw-lora"), consent=trusting)
    assert refused(offered("you/nsfw-lora"), consent=trusting)
    assert refused(offered("me/teapot"), consent=Consent(trusted=("me/*",), denied=("me/teapot",)))
    assert refused(offered("Bad/anything"), consent=Consent(denied=("bad/*",)))


def test_an_operator_has_words_of_their_own() -> None:
    assert not refused(offered("you/nsfw"), consent=Consent(denied_words=("zorro",)))
    assert refused(offered("you/z0rro"), consent=Consent(denied_words=("Zorro",)))


def test_every_denied_word_denies_itself() -> None:
    assert [word for word in DENIED_WORDS if not refused(offered(), word)] == []
