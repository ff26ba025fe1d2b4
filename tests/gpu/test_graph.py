"""What a GPU learns is what the CPU learns, whether its steps are launched as one graph or one kernel at a time."""

from dataclasses import replace

import pytest
import torch

from tests.bench.gpu_sdxl import BareUnet, calibration_of, random_adapter
from tests.sdxl import REDUCED
from ziplora.memory import Thrift, Ways
from ziplora.methods import ziplora
from ziplora.methods.solution import Problem, unheard
from ziplora.pair import Pair

_STEPS = 6
_SIDE = 64

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def on_cpu() -> Problem:
    """In double precision: in single, Adam's first steps go another way on every device."""
    torch.manual_seed(0)
    backbone = BareUnet(REDUCED, torch.device("cpu"), torch.float64)
    pair = Pair(*(random_adapter(backbone, 4, seed) for seed in (1, 2)))
    subject, style = (
        calibration_of(backbone, role, dict(layers), _SIDE)
        for role, layers in (("subject", pair.subject), ("style", pair.style))
    )
    return Problem(pair, backbone, subject, style, 0, unheard)


@pytest.fixture(scope="module")
def wanted(on_cpu: Problem) -> torch.Tensor:
    return learned(on_cpu)


@pytest.fixture
def on_gpu(on_cpu: Problem) -> Problem:
    backbone = BareUnet(REDUCED, torch.device("cuda"), torch.float64)
    assert isinstance(on_cpu.backbone, BareUnet)
    backbone.pipeline.unet.load_state_dict(on_cpu.backbone.pipeline.unet.state_dict())
    return replace(on_cpu, backbone=backbone)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[torch.cuda.CUDAGraph]:
    """The graphs that were launched, one entry for each time."""
    found: list[torch.cuda.CUDAGraph] = []
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        found.append(graph)
        replay(graph)

    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", counted)
    return found


def learned(problem: Problem) -> torch.Tensor:
    coefficients = ziplora.solve(problem, ziplora.Parameters(steps=_STEPS)).coefficients
    return torch.cat([*coefficients.subject.values(), *coefficients.style.values()])


@pytest.mark.parametrize("thrift", Thrift)
def test_a_gpu_learns_what_the_cpu_learns(
    thrift: Thrift, on_gpu: Problem, wanted: torch.Tensor, launched: list[torch.cuda.CUDAGraph]
) -> None:
    """To a thousandth of the way: diffusers embeds timesteps by sines of single precision, which devices round apart,
    and where a gradient is all but nothing Adam makes much of it.
    """
    on_gpu.backbone.room.trained = Ways(torch.device("cuda"), [thrift])
    assert (learned(on_gpu) - wanted).norm() < 1e-3 * (wanted - 1).norm()
    assert len(launched) == _STEPS - 1
    assert len(set(launched)) == 1


def test_where_a_graph_does_not_fit_it_goes_on_without_and_learns_the_same(
    on_gpu: Problem, launched: list[torch.cuda.CUDAGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    by_graph = learned(on_gpu)
    assert launched
    launched.clear()

    def too_large(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(torch.cuda, "graph", too_large)
    torch.testing.assert_close(learned(on_gpu), by_graph, rtol=0, atol=1e-9)
    assert not launched
