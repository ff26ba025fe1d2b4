"""Which licences may be merged, and what a merge of two carries: every pair of the table, and the ones read by hand."""

import pytest

from catalog.facts import Reason
from catalog.licence import TERMS, combine, gate, publication_gate

UNKNOWN = (None, "", "other", "unknown", "snofs-1.1", "MIT", "llama3")


def _code(answer: str | Reason | None) -> str | None:
    return answer.code if isinstance(answer, Reason) else answer


@pytest.mark.parametrize("subject", [*TERMS, *UNKNOWN])
def test_a_merge_carries_all_that_both_ask_for(subject: str | None) -> None:
    for style in (*TERMS, *UNKNOWN):
        answer = combine(subject, style)
        assert _code(answer) == _code(combine(style, subject)), "the order of the two must not matter"
        if isinstance(answer, Reason):
            continue
        assert answer is not None
        given, asked = TERMS[answer], [TERMS[subject or ""], TERMS[style or ""]]
        assert answer in (subject, style)
        assert given.commercial <= min(terms.commercial for terms in asked)
        assert given.use_restrictions >= max(terms.use_restrictions for terms in asked)
        assert given.share_alike >= max(terms.share_alike for terms in asked)
        assert all(terms.derivatives for terms in asked)
        assert gate(answer) is None
        assert combine(answer, subject) == combine(answer, style) == answer


@pytest.mark.parametrize("subject", [*TERMS, *UNKNOWN])
def test_what_is_not_known_stays_at_home(subject: str | None) -> None:
    for style in (*TERMS, *UNKNOWN):
        strict, lenient = combine(subject, style), combine(subject, style, allow_unknown=True)
        if _code(strict) != "LICENCE_UNKNOWN":
            assert lenient == strict
            continue
        assert lenient is None
        reason = publication_gate(lenient)
        assert reason is not None
        assert reason.code == "LICENCE_UNKNOWN"


@pytest.mark.parametrize(
    ("subject", "style", "expected"),
    [
        ("mit", "mit", "mit"),
        ("mit", "apache-2.0", "apache-2.0"),
        ("cc0-1.0", "mit", "mit"),
        ("unlicense", "openrail++", "openrail++"),
        ("apache-2.0", "cc-by-4.0", "cc-by-4.0"),
        ("cc-by-4.0", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("apache-2.0", "creativeml-openrail-m", "creativeml-openrail-m"),
        ("openrail++", "creativeml-openrail-m", "creativeml-openrail-m"),
        ("openrail", "openrail++", "openrail++"),
        ("openrail++", "bigscience-openrail-m", "LICENCE_CONFLICT"),
        ("bigscience-openrail-m", "bigscience-openrail-m", "bigscience-openrail-m"),
        ("mit", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-2.0", "cc-by-nc-4.0", "cc-by-nc-4.0"),
        ("cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-sa-4.0"),
        ("cc-by-nc-4.0", "cc-by-sa-4.0", "LICENCE_CONFLICT"),
        ("cc-by-nc-4.0", "openrail++", "LICENCE_CONFLICT"),
        ("cc-by-nc-4.0", "gpl-3.0", "LICENCE_CONFLICT"),
        ("cc-by-sa-4.0", "openrail++", "LICENCE_CONFLICT"),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-sa-4.0"),
        ("cc-by-sa-4.0", "gpl-3.0", "gpl-3.0"),
        ("cc-by-nc-sa-4.0", "cc-by-sa-4.0", "LICENCE_CONFLICT"),
        ("gpl-3.0", "openrail++", "LICENCE_CONFLICT"),
        ("gpl-3.0", "agpl-3.0", "agpl-3.0"),
        ("gpl-2.0", "gpl-3.0", "LICENCE_CONFLICT"),
        ("gpl-2.0", "apache-2.0", "LICENCE_CONFLICT"),
        ("gpl-3.0", "apache-2.0", "gpl-3.0"),
        ("lgpl-3.0", "gpl-3.0", "gpl-3.0"),
        ("mit", "cc-by-nd-4.0", "LICENCE_NO_DERIVATIVES"),
        ("cc-by-nc-nd-4.0", "other", "LICENCE_NO_DERIVATIVES"),
        ("mit", None, "LICENCE_UNKNOWN"),
        ("other", "openrail++", "LICENCE_UNKNOWN"),
    ],
)
def test_the_pairs_that_were_read_by_hand(subject: str, style: str | None, expected: str) -> None:
    assert _code(combine(subject, style)) == expected


def test_a_refusal_names_the_licence_and_the_way_out() -> None:
    reason = gate("snofs-1.1")
    assert reason is not None
    assert "'snofs-1.1'" in reason.fact
    assert "merge_unknown_licences" in reason.next_step
    conflict = combine("cc-by-nc-4.0", "openrail++")
    assert isinstance(conflict, Reason)
    assert "cc-by-nc-4.0 of the subject and openrail++ of the style" in conflict.fact
