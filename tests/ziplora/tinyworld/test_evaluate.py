"""The evaluation: what it says of made-up outcomes, and that it runs."""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ziplora.export import merge_files
from ziplora.methods import METHODS, complete_parameters
from ziplora.tinyworld import evaluate
from ziplora.tinyworld.evaluate import interval, summary
from ziplora.tinyworld.evaluate_page import evaluation_page
from ziplora.tinyworld.trials import Outcome, Placed, Trial

DOCS = Path(__file__).parents[3] / "docs" / "methods"
EVALUATED = json.loads((DOCS / "evaluated.json").read_text())


def test_the_page_shows_the_evaluated_figures() -> None:
    assert (DOCS / "README.md").read_text() == evaluation_page(EVALUATED)


def test_the_default_is_the_method_and_the_setting_that_won_where_settings_are_chosen() -> None:
    best = max(EVALUATED["tuning"], key=lambda row: row["harmonic"])
    assert inspect.signature(merge_files).parameters["method"].default == best["method"]
    defaults = complete_parameters(best["method"], {})
    assert best["parameters"].items() <= defaults.items()


def _outcome(subject: float, style: float) -> Outcome:
    text = Placed(0.3, 0.2, 0.4)
    return Outcome("a × b", Placed(subject, 0, 1), Placed(style, 0, 1), text, 1, 0.5, 0.5, 0.1, None, 2.0)


def test_a_merge_without_its_style_is_worth_nothing() -> None:
    assert _outcome(1.0, 0.0).harmonic == 0.0
    assert _outcome(0.5, 0.5).harmonic == 0.5


def test_a_pair_whose_floor_is_at_its_ceiling_counts_for_no_method() -> None:
    nowhere = replace(_outcome(0.9, 0.9), subject=Placed(0.7, 0.6, 0.58))
    direct = Trial("direct", {}, (_outcome(0.5, 0.5), nowhere), None)
    other = Trial("ziplora", {}, (_outcome(0.7, 0.7), replace(nowhere, subject=Placed(0.1, 0.6, 0.58))), None)
    assert direct.harmonic == 0.5
    row = summary(other, direct)
    assert (row["pairs"], row["placed"]) == (2, 1)
    assert row["gain"] == pytest.approx(0.2)


def test_an_interval_holds_the_mean_and_narrows_with_the_pairs() -> None:
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    low, high = interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 20, rel=0.15)
    few_low, few_high = interval(values[:16])
    assert few_high - few_low > 3 * (high - low)


def test_a_gain_is_counted_pair_by_pair() -> None:
    direct = Trial("direct", {}, (_outcome(0.5, 0.5), _outcome(0.9, 0.9)), None)
    other = Trial("ziplora", {}, (_outcome(0.7, 0.7), _outcome(0.8, 0.8)), None)
    row = summary(other, direct)
    assert row["gain"] == pytest.approx(0.05)
    assert row["better_than_direct"] == 0.5
    assert summary(direct, direct)["gain_interval"] == (0.0, 0.0)


def test_a_setting_that_fails_is_named_with_its_code_and_never_chosen() -> None:
    failed = Trial("ziplora", {"learning_rate": 5e-5}, (), "MERGE_UNMOVED")
    assert failed.harmonic == 0.0
    assert summary(failed, failed)["failure"] == "MERGE_UNMOVED"


@pytest.mark.slow
def test_every_method_is_evaluated_in_smoke_mode(tmp_path: Path) -> None:
    evaluate.main(["--smoke", "--work", str(tmp_path / "work"), "--docs", str(tmp_path / "docs")])
    evaluated = json.loads((tmp_path / "docs" / "evaluated.json").read_text())
    assert {row["method"] for row in evaluated["reported"]} == METHODS.keys()
    for row in evaluated["reported"]:
        with Image.open(tmp_path / "docs" / f"{row['method']}.png") as picture:
            assert min(picture.size) > 100
