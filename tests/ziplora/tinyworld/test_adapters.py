"""The sixteen adapters: what they cover, and that what they are tried on is new to them."""

import pytest

from ziplora.tinyworld.adapters import (
    PICTURES,
    PLANS,
    STYLE_OBJECTS,
    SUBJECT_BACKGROUNDS,
    AdapterPlan,
    instance_caption,
    training_scenes,
)
from ziplora.tinyworld.figures import OBJECTS, SUBJECTS
from ziplora.tinyworld.text import CONTEXT_LENGTH, build_tokenizers
from ziplora.tinyworld.world import NEW_STYLES

SUBJECT_PLANS = [plan for plan in PLANS if plan.role == "subject"]
STYLE_PLANS = [plan for plan in PLANS if plan.role == "style"]


def test_every_subject_and_every_new_style_has_one_adapter() -> None:
    assert [plan.name for plan in SUBJECT_PLANS] == list(SUBJECTS)
    assert [plan.name for plan in STYLE_PLANS] == list(NEW_STYLES)


def test_the_formats_found_in_the_wild_are_covered() -> None:
    assert {plan.dialect for plan in PLANS} == {"diffusers", "diffusers_old", "peft", "kohya", "kohya_sgm"}
    assert (min(plan.rank for plan in PLANS), max(plan.rank for plan in PLANS)) == (4, 32)
    assert any(plan.dialect == "kohya" and plan.alpha != plan.rank for plan in PLANS)
    assert sum(plan.feed_forward for plan in PLANS) == sum(plan.text_encoder for plan in PLANS) == 1


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.name)
def test_training_pictures_leave_backgrounds_or_objects_unseen(plan: AdapterPlan) -> None:
    scenes = training_scenes(plan, seed=0)
    assert len(scenes) == PICTURES[plan.role] == len(set(scenes))
    if plan.role == "subject":
        assert {scene.background for scene in scenes} == set(SUBJECT_BACKGROUNDS)
        assert {(scene.figure, scene.style) for scene in scenes} == {(plan.name, "flat")}
    else:
        assert {scene.figure for scene in scenes} == set(STYLE_OBJECTS) < set(OBJECTS)
        assert {scene.style for scene in scenes} == {plan.name}


def test_captions_carry_the_trigger() -> None:
    robot, neon = SUBJECT_PLANS[0], STYLE_PLANS[0]
    assert instance_caption(robot, training_scenes(robot, 0)[0]) == "a sks robot on a white background"
    assert instance_caption(neon, training_scenes(neon, 0)[0]).endswith(" in neon style")


def test_no_caption_is_cut() -> None:
    tokenizer, _ = build_tokenizers()
    captions = [instance_caption(plan, scene) for plan in PLANS for scene in training_scenes(plan, 0)]
    assert max(len(ids) for ids in tokenizer(captions).input_ids) <= CONTEXT_LENGTH
