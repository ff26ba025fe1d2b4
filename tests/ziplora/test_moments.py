"""Second moments are those of the real inputs, are computed once, and do not fill the memory."""

from dataclasses import replace

import pytest
import torch

from ziplora import moments
from ziplora.backbone import Sdxl
from ziplora.calibration import predict_all
from ziplora.failure import Failure
from ziplora.keys import Module
from ziplora.methods.solution import Problem
from ziplora.moments import adapter_moments
from ziplora.store import Store

from .conftest import Lora
from .test_methods import problem_of

BLOCK = "mid_block.attentions.0.transformer_blocks.0"


@pytest.fixture
def problem(backbone: Sdxl, subject: Lora, style: Lora, store: Store, monkeypatch: pytest.MonkeyPatch) -> Problem:
    monkeypatch.setattr(moments, "_KEPT", type(moments._KEPT)())  # noqa: SLF001
    return problem_of(backbone, store, subject, style)


@pytest.mark.parametrize("end", ["attn1.to_k", "attn1.to_out.0", "attn2.to_q", "attn2.to_v"])
def test_they_are_those_of_what_the_layer_is_given(end: str, problem: Problem, backbone: Sdxl, style: Lora) -> None:
    """With the whole UNet part of the adapter at work, feed-forward layers included."""
    module, side, given = Module("unet", f"{BLOCK}.{end}"), problem.calibrations[1], []
    layers = {module: layer for module, layer in problem.pair.style.items() if module.part == "unet"}
    watched = backbone.pipeline.unet.get_submodule(module.path)
    handle = watched.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0].flatten(0, 1)))
    with backbone.adapted(layers):
        predict_all(backbone, side.noisy, side.timesteps, side.condition)
    handle.remove()
    tokens = torch.cat(given)
    found = adapter_moments(backbone, problem.pair.style, side)[module]
    torch.testing.assert_close(found, tokens.T @ tokens / len(tokens))


def test_layers_with_one_input_share_one_moment(problem: Problem, backbone: Sdxl) -> None:
    """Of every block self-attention's three and both outputs' and cross-attention's queries'; one text for all."""
    found = adapter_moments(backbone, problem.pair.subject, problem.calibrations[0])
    assert len(found) == 56
    assert len({id(moment) for moment in found.values()}) == 7 * 4 + 1
    texts = {id(moment) for module, moment in found.items() if module.path.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(texts) == 1


def test_they_are_computed_once_for_a_base_and_a_calibration(
    problem: Problem, backbone: Sdxl, backbone64: Sdxl
) -> None:
    layers, side = problem.pair.subject, problem.calibrations[0]
    first = adapter_moments(backbone, layers, side)
    assert adapter_moments(backbone, layers, replace(side)) is first
    assert adapter_moments(backbone, layers, replace(side, calibration_id="another")) is not first
    double = adapter_moments(backbone64, layers, side)
    assert {moment.dtype for moment in double.values()} == {torch.float64}


def test_what_was_not_asked_for_longest_makes_room(
    problem: Problem, backbone: Sdxl, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, side = problem.pair.subject, problem.calibrations[0]
    one, two, three = (replace(side, calibration_id=name) for name in ("one", "two", "three"))
    first = adapter_moments(backbone, layers, one)
    each_bytes = sum({id(moment): moment.nbytes for moment in first.values()}.values())
    monkeypatch.setattr(moments, "_KEPT_BYTES", 2 * each_bytes)
    second = adapter_moments(backbone, layers, two)
    assert adapter_moments(backbone, layers, one) is first
    adapter_moments(backbone, layers, three)
    assert adapter_moments(backbone, layers, one) is first
    assert adapter_moments(backbone, layers, two) is not second
    monkeypatch.setattr(moments, "_KEPT_BYTES", 0)
    latest = adapter_moments(backbone, layers, three)
    assert adapter_moments(backbone, layers, three) is latest


def test_inputs_that_are_not_finite_are_a_failure(problem: Problem, backbone: Sdxl) -> None:
    bias = backbone.pipeline.unet.get_parameter("conv_in.bias")
    kept = bias.detach().clone()
    try:
        bias.data.fill_(torch.inf)
        with pytest.raises(Failure, match=r"the inputs of .*attn.* are NaN or infinite") as caught:
            adapter_moments(backbone, problem.pair.subject, problem.calibrations[0])
    finally:
        bias.data.copy_(kept)
    assert caught.value.code == "NON_FINITE_INPUTS"
