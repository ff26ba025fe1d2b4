"""What a night would do, told from made-up adapters: nothing is read, and nothing is written."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from catalog.facts import Role
from flows.batch import compressed, merge_batch
from flows.packing import packed
from flows.plan import Base, Input, Plan, Recipes, base_of, plan, slot_of
from flows.settings import Settings, parse_settings

from .world import SETTINGS

BASE = Base("tiny", "1")
ALL = ["cat × neon", "cat × wave", "dog × neon", "dog × wave"]


def _settings(**changes: Any) -> Settings:
    return parse_settings(yaml.safe_dump({**SETTINGS, "methods": [{"method": "direct"}], **changes}), Path("/nights"))


def _adapter(role: Role, name: str, licence: str | None = "apache-2.0") -> Input:
    prompt = f"a sks {name}" if role == "subject" else f"a star in {name} style"
    file = Path(f"/adapters/{name}.safetensors")
    return Input(_sha256(name), role, f"me/{name}-lora", "1", "a.safetensors", licence, prompt, prompt, file, ())


def _sha256(name: str) -> str:
    return name.encode().hex().ljust(64, "0")


ADAPTERS = (
    _adapter("subject", "cat"),
    _adapter("subject", "dog"),
    _adapter("style", "neon"),
    _adapter("style", "wave"),
)


def _planned(
    settings: Settings,
    adapters: Sequence[Input] = ADAPTERS,
    finished: Collection[str] = (),
    blocked: Collection[str] = (),
    requested: Sequence[tuple[str, str]] = (),
) -> Plan:
    asked = [(_sha256(subject), _sha256(style)) for subject, style in requested]
    known = dict.fromkeys(finished, "done") | dict.fromkeys(blocked, "blocked")
    return plan(settings, BASE, adapters, lambda _: known, asked)


def _pairs(planned: Plan) -> list[str]:
    return [job.name.partition(" · ")[0] for job in planned.jobs]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ({}, ALL),
        ({"include": ["cat-* x *"]}, ALL[:2]),
        ({"include": ["me/cat-lora x me/neon-lora"]}, ALL[:1]),
        ({"include": ["cat x wave", "dog x neon"]}, ALL[1:3]),
        ({"exclude": ["* x neon"]}, [ALL[1], ALL[3]]),
        ({"include": ["cat x *"], "exclude": ["cat x *"]}, []),
        ({"include": ["Cat x *"]}, []),
    ],
)
def test_patterns_choose_pairs(pairs: dict[str, list[str]], expected: list[str]) -> None:
    assert _pairs(_planned(_settings(pairs=pairs))) == expected


def test_what_is_asked_for_goes_first_in_the_order_of_asking_whatever_the_patterns_say() -> None:
    settings = _settings(pairs={"exclude": ["dog x wave"]})
    planned = _planned(settings, requested=[("dog", "wave"), ("cat", "wave")])
    assert _pairs(planned) == ["dog × wave", "cat × wave", "cat × neon", "dog × neon"]


def test_what_is_finished_or_blocked_is_subtracted() -> None:
    first, second, *rest = (job.recipe.merge_id for job in _planned(_settings()).jobs)
    planned = _planned(_settings(), finished=[first, "of another night"], blocked=[second])
    assert [job.recipe.merge_id for job in planned.jobs] == rest
    assert (planned.finished, planned.blocked) == (1, 1)


def test_what_is_wanted_is_known_by_its_id_when_it_is_done_too() -> None:
    settings = _settings(methods=SETTINGS["methods"], pairs={"exclude": ["dog x wave"]})
    jobs = _planned(settings).jobs
    ids = [(job.subject.sha256, job.style.sha256, job.recipe.merge_id) for job in jobs]
    wishes = _planned(settings, finished=[merge_id for *_, merge_id in ids]).wishes
    assert tuple(wishes.job_of(*one) for one in ids) == jobs
    subject, style, _ = ids[0]
    assert wishes.job_of(subject, style, "of other settings") is None
    assert wishes.job_of(_sha256("dog"), _sha256("wave"), ids[0][2]) is None
    assert wishes.job_of(_sha256("ghost"), style, ids[0][2]) is None


def test_a_request_is_answered_once_every_method_is_finished() -> None:
    settings = _settings(methods=SETTINGS["methods"])
    direct, gradient = (job.recipe.merge_id for job in _planned(settings).jobs[:2])
    asked = [("cat", "neon"), ("ghost", "neon")]
    assert _planned(settings, finished=[direct], requested=asked).answered == ()
    answered = _planned(settings, finished=[direct, gradient], requested=asked).answered
    assert answered == ((_sha256("cat"), _sha256("neon")),)


def test_a_limit_postpones_the_rest() -> None:
    settings = _settings(methods=SETTINGS["methods"], limits={"pairs": 1})
    planned = _planned(settings, requested=[("dog", "wave")])
    assert [job.name for job in planned.jobs] == ["dog × wave · ziplora", "dog × wave · direct"]
    assert planned.postponed == 6


def test_licences_that_exclude_each_other_are_skipped_with_a_reason() -> None:
    adapters = (
        _adapter("subject", "cat", "cc-by-nc-4.0"),
        _adapter("style", "neon", "gpl-3.0"),
        _adapter("style", "wave"),
    )
    planned = _planned(_settings(), adapters)
    assert _pairs(planned) == ["cat × wave"]
    (skipped,) = planned.skipped
    assert skipped.job.name == "cat × neon · direct"
    assert skipped.reason.code.startswith("LICENCE_")


def test_variants_of_the_base_are_merged_with_each_other_only_on_request() -> None:
    cat, dog, neon, wave = ADAPTERS
    adapters = (cat, replace(dog, variant="v-prediction"), neon, replace(wave, variant="v-prediction"))
    planned = _planned(_settings(), adapters)
    assert _pairs(planned) == ["cat × neon", "dog × wave"]
    assert {one.reason.code for one in planned.skipped} == {"VARIANT_MISMATCH"}
    assert "the subject on plain and the style on v-prediction" in planned.skipped[0].reason.fact
    assert _pairs(_planned(_settings(), adapters, requested=[("cat", "wave")]))[0] == "cat × wave"


def test_an_unknown_licence_is_merged_only_when_the_settings_say_so() -> None:
    adapters = (_adapter("subject", "cat", None), _adapter("style", "neon"))
    assert _pairs(_planned(_settings(), adapters)) == []
    (job,) = _planned(_settings(merge_unknown_licences=True), adapters).jobs
    assert job.licence is None


def test_the_same_adapters_make_the_same_plan_wherever_they_lie() -> None:
    moved = [Input(**{**vars(one), "file": Path("/elsewhere"), "revision": "2"}) for one in ADAPTERS]
    there, here = _planned(_settings(), moved), _planned(_settings())
    assert [job.recipe.merge_id for job in there.jobs] == [job.recipe.merge_id for job in here.jobs]


@pytest.mark.parametrize(
    ("role", "prompt", "slot"),
    [
        ("subject", "a sks cat", "a sks cat"),
        ("subject", "a sks cat in a box", "a sks cat in a box"),
        ("style", "flowers in szn style", "in szn style"),
        ("style", "a house in snow in szn style", "in szn style"),
        ("style", "in szn style", "in szn style"),
        ("style", "szn style", "szn style"),
    ],
)
def test_a_slot_is_made_from_the_trigger_prompt(role: Role, prompt: str, slot: str) -> None:
    assert slot_of(role, prompt) == slot


def test_prompts_are_filled_with_the_slots() -> None:
    job = _planned(_settings()).jobs[0]
    assert job.prompts(["{subject} on snow {style}", "{subject}"]) == (
        "a sks cat on snow a star in neon style",
        "a sks cat",
    )


def test_a_subject_alone_is_drawn_in_the_surroundings_of_its_merges() -> None:
    job = _planned(_settings()).jobs[0]
    assert job.subject_prompts(["{subject} on snow {style}", "a {style} {subject}"]) == (
        "a sks cat on snow",
        "a a sks cat",
    )
    assert job.subject_prompts(["{style}"]) == ("a sks cat",)


def test_joint_prompts_are_in_the_recipes_of_methods_that_need_them() -> None:
    settings = _settings(
        methods=[{"method": "ziplora-joint"}, {"method": "direct"}],
        calibration={"joint_prompts": ["{subject} {style}", "{subject} at sea {style}"], "guidance": 2.0, "seed": 3},
    )
    first, second = (job.recipe.joint for job in _planned(settings).jobs[:2])
    assert second is None
    assert first is not None
    assert first.prompts == ("a sks cat a star in neon style", "a sks cat at sea a star in neon style")
    assert (first.guidance, first.seed, first.side) == (2.0, 3, settings.previews.side)


_SLOT = st.text() | st.sampled_from(["", " a ", "\\ue000", "\ue000", '"%(subject)s"', "{style}", "\\u0000"])


@given(slots=st.tuples(_SLOT, _SLOT, _SLOT, _SLOT), around=_SLOT)
def test_a_plan_knows_merges_by_the_ids_of_their_recipes(slots: tuple[str, str, str, str], around: str) -> None:
    """Whatever the prompts are."""
    around = around.replace("{", "{{").replace("}", "}}")
    settings = _settings(
        methods=[{"method": "ziplora-joint"}, {"method": "ziplora"}, {"method": "direct"}],
        calibration={"joint_prompts": [around + "{subject} {style}", "{style}{style}" + around, "{subject}"]},
    )
    recipes = Recipes(settings, BASE)
    subjects, styles = (
        [replace(one, slot=slot) for one, slot in zip(adapters, some, strict=True)]
        for adapters, some in ((ADAPTERS[:2], slots[:2]), (ADAPTERS[2:], slots[2:]))
    )
    for subject, style in product(subjects, styles):
        assert recipes.merge_ids(subject, style) == [recipes.of(subject, style, number).merge_id for number in range(3)]


def test_a_local_base_is_known_by_its_content_and_one_of_the_hub_by_its_commit(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "tiny").mkdir(parents=True)
        (tmp_path / name / "tiny" / "model_index.json").write_text("{}")
    one, two = (base_of(_settings(base_model={"id": str(tmp_path / name / "tiny")})) for name in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "tiny" / "model_index.json").write_text("[]")
    assert base_of(_settings(base_model={"id": str(tmp_path / "two" / "tiny")})) != one
    assert base_of(_settings(base_model={"id": "owner/base", "revision": "abc"})) == Base("owner/base", "abc")


def test_a_batch_holds_what_the_settings_say() -> None:
    jobs = _planned(_settings()).jobs
    assert [len(batch) for batch in packed(jobs, 3, {}, 1)] == [3, 1]
    assert list(packed((), 3, {}, 1)) == []


def test_batches_are_cut_by_what_merges_took_and_keep_the_methods_of_a_pair_together() -> None:
    methods = [{"method": "ziplora"}, {"method": "direct"}]
    jobs = _planned(_settings(methods=methods)).jobs
    cut = list(packed(jobs, 50, {"ziplora": 1000.0, "direct": 1.0}, 1))
    assert [len(batch) for batch in cut] == [2] * (len(jobs) // 2)
    assert all(len({(job.subject.sha256, job.style.sha256) for job in batch}) == 1 for batch in cut)
    assert [job for batch in cut for job in batch] == list(jobs)


def test_a_batch_comes_out_of_its_parameter_as_it_went_in_and_is_short_in_it() -> None:
    methods = [{"method": "ziplora", "parameters": {"steps": steps}} for steps in (10, 20)]
    jobs = _planned(_settings(methods=methods)).jobs
    parameters = {"settings": _settings(), "base": BASE, "night_id": "n", "number": 1, "until": datetime.now(UTC)}
    assert merge_batch.validate_parameters({**parameters, "jobs": compressed(jobs)})["jobs"] == jobs
    assert len(compressed(jobs)) < len(repr(jobs)) / 5


def test_several_workers_share_a_short_night() -> None:
    jobs = _planned(_settings()).jobs
    assert [len(batch) for batch in packed(jobs, 50, {}, 2)] == [1] * len(jobs)
    assert [len(batch) for batch in packed(jobs, 50, {"ziplora-joint": 10.0}, 2)] == [len(jobs)], (
        "less than a minute is not worth a second process"
    )
    assert [len(batch) for batch in packed(jobs, 50, {"ziplora-joint": 60.0}, 2)] == [2, 2], "one share for each"
    assert [len(batch) for batch in packed(jobs, 50, {"ziplora-joint": 200.0}, 2)] == [1] * len(jobs), "and two"


def test_shares_are_even_whatever_the_number_of_pairs() -> None:
    crowd = [_adapter("subject", f"cat{number}") for number in range(59)]
    methods = [{"method": "ziplora"}, {"method": "direct"}]
    jobs = _planned(_settings(methods=methods), [*crowd, _adapter("style", "neon")]).jobs
    assert [len(batch) for batch in packed(jobs, 50, {}, 2)] == [30, 30, 30, 28]
    seconds = {"ziplora": 2.0, "direct": 1.0}
    assert [len(batch) for batch in packed(jobs, 100, seconds, 2)] == [60, 58]
    assert [len(batch) for batch in packed(jobs, 50, seconds, 2)] == [30, 30, 30, 28], "or one would get two of three"
    for took in range(100):  # half of the pairs is half a pair, on either side of which a sum may lie
        assert len(list(packed(jobs, 100, {"ziplora": 1 + took / 30, "direct": 0.7}, 2))) == 2
