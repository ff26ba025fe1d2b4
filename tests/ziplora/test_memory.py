"""Where memory runs out, less is done at once with the same result; where even the least is too much, it is said."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ziplora.backbone import Sdxl
from ziplora.failure import Failure
from ziplora.joint import calibrate_jointly
from ziplora.memory import Room, Thrift, Ways, in_batches, shortage_in_words
from ziplora.merge import merge
from ziplora.methods import METHODS
from ziplora.methods.descent import row_schedule
from ziplora.methods.solution import Problem, relative_errors
from ziplora.methods.student import Student
from ziplora.methods.ziplora import Parameters, objective
from ziplora.moments import input_moments
from ziplora.pair import DIRECT
from ziplora.preview import preview_single
from ziplora.recipe import Drawing, PreviewRequest, Single
from ziplora.store import Store

from .conftest import BASE_MODEL, BASE_REVISION, JOINT, SIDE, Lora, recipe_of
from .test_methods import assert_same, assert_same_columns, problem_of

CPU = torch.device("cpu")
ROUNDING = 1e-6
"""Of coefficients, in double precision: Adam's first steps go as far where a gradient is next to nothing."""
DRAWING = Drawing(steps=2, guidance=5.0, side=SIDE)
WANTED = [("a red star", 1), ("a blue moon", 2), ("a red star", 3)]


@pytest.fixture(scope="module")
def problem(backbone: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    problem = problem_of(backbone, Store(tmp_path_factory.mktemp("store")), subject, style)
    return replace(problem, joint=calibrate_jointly(JOINT, problem.pair, backbone))


@pytest.fixture(scope="module")
def problem64(backbone64: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    problem = problem_of(backbone64, Store(tmp_path_factory.mktemp("store")), subject, style)
    return replace(problem, joint=calibrate_jointly(JOINT, problem.pair, backbone64))


@pytest.fixture
def room(backbone: Sdxl, backbone64: Sdxl, monkeypatch: pytest.MonkeyPatch) -> Room:
    """That of a backbone, in whichever precision, which has not run out of memory yet."""
    room = Room(CPU)
    for one in (backbone, backbone64):
        monkeypatch.setattr(one, "room", room)
    return room


@contextmanager
def cramped(module: nn.Module, too_much: Callable[[int], bool]) -> Iterator[list[int]]:
    """A module that runs out of memory in its forward pass; gives how many it was shown, each time."""
    shown: list[int] = []

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shown.append(len(inputs[0]))
        if too_much(shown[-1]):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = module.register_forward_pre_hook(look)
    try:
        yield shown
    finally:
        handle.remove()


def small_card(backbone: Sdxl, samples: int = 8, needs_checkpoints: bool = False) -> Any:
    """A UNet with room for some samples at once, in training perhaps only when it recomputes."""
    unet = backbone.pipeline.unet

    def too_much(count: int) -> bool:
        wasteful = needs_checkpoints and torch.is_grad_enabled() and not unet.is_gradient_checkpointing
        return count > samples or wasteful

    return cramped(unet, too_much)


def gradient_of(student: Student, problem: Problem, backbone: Sdxl, thrift: Thrift) -> Tensor:
    student.flat.grad = None
    rows = [torch.tensor([0, 3]), torch.tensor([2, 1])]
    with student.installed(), student.sparing(thrift):
        sum(objective(student, problem.calibrations, rows, Parameters())).backward()  # type: ignore[union-attr]
    assert student.flat.grad is not None
    return student.flat.grad


@pytest.mark.parametrize("thrift", [Thrift.RECOMPUTED, Thrift.PIECEWISE])
def test_a_thrifty_gradient_is_the_same(
    thrift: Thrift, backbone64: Sdxl, subject: Lora, style: Lora, store: Store
) -> None:
    problem = problem_of(backbone64, store, subject, style)
    student = Student(problem, DIRECT)
    wanted = gradient_of(student, problem, backbone64, Thrift.NONE)
    found = gradient_of(student, problem, backbone64, thrift)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))
    assert not backbone64.pipeline.unet.is_gradient_checkpointing
    assert not backbone64.pipeline.unet.training


def test_each_thrift_keeps_less_for_the_backward_pass(problem: Problem, backbone: Sdxl) -> None:
    """As far as can be seen on a CPU: bytes that the graph of a step holds when its forward pass is done."""

    def kept_bytes(thrift: Thrift) -> int:
        student, kept = Student(problem, DIRECT), {}
        rows = [torch.tensor([0, 1]), torch.tensor([2, 3])]

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        weights = {parameter.untyped_storage().data_ptr() for parameter in backbone.pipeline.unet.parameters()}
        with (
            student.installed(),
            student.sparing(thrift),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            held = student.predict(problem.calibrations, rows)
        del held
        return sum(size for place, size in kept.items() if place not in weights)

    whole, recomputed, piecewise = (kept_bytes(thrift) for thrift in Thrift)
    assert recomputed < whole / 4
    assert piecewise < recomputed / 4


@pytest.mark.parametrize("name", ["ziplora", "ziplora-joint"])
@pytest.mark.parametrize(
    ("samples", "chosen"), [(8, Thrift.RECOMPUTED), (1, Thrift.PIECEWISE)], ids=["recomputed", "piecewise"]
)
def test_a_merge_that_does_not_fit_is_made_thriftily(
    name: str, samples: int, chosen: Thrift, problem64: Problem, backbone64: Sdxl, room: Room
) -> None:
    method = METHODS[name]
    wanted = method.solve(problem64, method.parameters(steps=3))
    assert room.trained.chosen is Thrift.NONE
    with small_card(backbone64, samples, needs_checkpoints=True):
        found = method.solve(problem64, method.parameters(steps=3))
    assert_same(found, wanted, tolerance=ROUNDING)
    assert room.trained.chosen is chosen
    assert not backbone64.pipeline.unet.is_gradient_checkpointing


def test_what_did_not_fit_once_is_not_tried_again(problem: Problem, backbone: Sdxl, room: Room) -> None:
    with small_card(backbone, needs_checkpoints=True) as first:
        METHODS["ziplora"].solve(problem, Parameters(steps=3))
    with small_card(backbone, needs_checkpoints=True) as second:
        METHODS["ziplora"].solve(problem, Parameters(steps=3))
    assert len(first) == len(second) + 1


def test_a_step_interrupted_on_its_way_back_is_begun_again(problem64: Problem, backbone64: Sdxl, room: Room) -> None:
    wanted = METHODS["ziplora"].solve(problem64, Parameters(steps=3))
    interrupted: list[Any] = []

    def interrupt(_: nn.Module, __: Any, output: tuple[Tensor]) -> None:
        if torch.is_grad_enabled() and len(interrupted) < 2:
            interrupted.append(output[0].register_hook(_run_out))  # type: ignore[no-untyped-call]

    handle = backbone64.pipeline.unet.register_forward_hook(interrupt)
    try:
        found = METHODS["ziplora"].solve(problem64, Parameters(steps=3))
    finally:
        handle.remove()
    assert len(interrupted) == 2
    assert room.trained.chosen is Thrift.PIECEWISE
    assert_same(found, wanted, tolerance=ROUNDING)


def _run_out(_: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory.")


def test_where_there_is_room_a_step_is_the_plain_one(problem: Problem, backbone: Sdxl, room: Room) -> None:
    """To the last bit: forward, backward, Adam, over all samples in one batch."""
    parameters, sides, student = Parameters(steps=4), problem.calibrations, Student(problem, DIRECT)
    optimiser = torch.optim.Adam([student.flat], lr=parameters.learning_rate)
    schedules = [row_schedule(side, parameters.steps, parameters.samples_per_step, problem.seed) for side in sides]
    with student.installed():
        for rows in zip(*schedules, strict=True):
            subject, style, third = objective(student, sides, rows, parameters)
            optimiser.zero_grad()
            (subject + style + parameters.third_term_weight * third).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    found = METHODS["ziplora"].solve(problem, parameters)
    assert_same_columns(found.coefficients, student.coefficients())
    assert (room.trained.chosen, room.predicted.chosen) == (Thrift.NONE, 4)


def test_predictions_are_made_with_fewer_at_once(problem: Problem, backbone: Sdxl, room: Room) -> None:
    wanted = relative_errors(problem, DIRECT)
    with small_card(backbone, samples=1) as shown:
        assert relative_errors(problem, DIRECT) == pytest.approx(wanted, rel=1e-4)
    assert shown == [4, 2, *[1] * 8]
    assert room.predicted.chosen == 1


def test_moments_count_every_sample_once(problem: Problem, backbone: Sdxl, room: Room) -> None:
    """Also when the memory runs out in the last layers, long after the first were recorded."""
    layers, side = dict(problem.pair.subject), problem.calibrations[0]
    wanted = input_moments(backbone, layers, side, list(layers))
    with cramped(backbone.pipeline.unet.conv_out, lambda count: count > 1):
        found = input_moments(backbone, layers, side, list(layers))
    assert room.predicted.chosen == 1
    for module, moment in wanted.items():
        torch.testing.assert_close(found[module], moment, rtol=1e-3, atol=1e-4)


def test_pictures_are_drawn_and_encoded_with_fewer_at_once(backbone: Sdxl, room: Room) -> None:
    wanted = backbone.draw(WANTED, DRAWING)
    pictures = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    latents = backbone.encode(pictures)
    vae = backbone.pipeline.vae
    with small_card(backbone, samples=4):  # two pictures, each with and without its prompt
        found = backbone.draw(WANTED, DRAWING)
    with cramped(vae.encoder, lambda count: count > 1):
        torch.testing.assert_close(backbone.encode(pictures), latents, rtol=1e-4, atol=1e-4)
    assert np.abs(found - wanted).max() < 1e-4
    assert (room.drawn.chosen, room.encoded.chosen) == (2, 1)


def refused(work: Callable[[], object]) -> Failure:
    with pytest.raises(Failure) as caught:
        work()
    assert caught.value.code == "OUT_OF_MEMORY"
    assert "take a device with more memory" in caught.value.next_step
    return caught.value


def test_a_merge_that_fits_in_no_way_is_a_failure(
    subject: Lora, style: Lora, backbone: Sdxl, store: Store, room: Room
) -> None:
    def run(method: str) -> object:
        recipe = recipe_of(subject, style, method, steps=2)
        return merge(recipe, subject.path, style.path, backbone, store, subject.references, style.references)

    with small_card(backbone, samples=0):
        failure = refused(lambda: run("ziplora"))
    assert failure.fact == "The device cpu ran out of memory."
    assert room.predicted.chosen == 1
    with cramped(backbone.pipeline.text_encoder, lambda _: True):
        refused(lambda: run("ziplora"))  # where nothing thriftier can be done
    assert not any("forward" in vars(module) for module in backbone.pipeline.unet.modules())
    run("ziplora")


def test_a_step_that_fits_in_no_way_is_a_failure(problem: Problem, backbone: Sdxl, room: Room) -> None:
    with cramped(backbone.pipeline.unet, lambda _: torch.is_grad_enabled()):
        refused(lambda: METHODS["ziplora"].solve(problem, Parameters(steps=2)))
    assert room.trained.chosen is Thrift.PIECEWISE
    assert not backbone.pipeline.unet.is_gradient_checkpointing


def test_a_preview_that_fits_in_no_way_is_a_failure(backbone: Sdxl, store: Store, room: Room) -> None:
    request = PreviewRequest(("a red star",), (1, 2), DRAWING)
    single = Single(None, BASE_MODEL, BASE_REVISION, DRAWING)
    for part in (backbone.pipeline.unet, backbone.pipeline.text_encoder):
        with cramped(part, lambda _: True):
            refused(lambda: preview_single(single, request, None, backbone, store))
    assert len(preview_single(single, request, None, backbone, store).pictures) == 2


def test_a_failure_holds_nothing_of_what_ran_out(backbone: Sdxl) -> None:
    """Or a night that keeps its failures would keep what filled the device."""
    ways = Ways(CPU, (1,))
    held: list[Any] = []

    def work(_: int) -> None:
        big = torch.zeros(10)
        held.append(torch.utils.weak.WeakTensorKeyDictionary({big: True}))
        raise torch.OutOfMemoryError

    def told() -> None:
        with shortage_in_words(CPU):
            work(0)

    failures = [refused(lambda: ways.do(work)), refused(told)]
    assert len(failures) == len(held) == 2
    assert [len(list(one)) for one in held] == [0, 0]


def test_a_failure_says_what_the_card_has_and_what_was_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 29, 24 << 30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 21 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some card")

    def work(_: int) -> None:
        raise torch.OutOfMemoryError

    failure = refused(lambda: Ways(torch.device("cuda"), (2, 1)).do(work))
    wanted = "Some card ran out of memory: of its 24.0 GiB 23.5 were in use, 21.0 by tensors of this process."
    assert failure.fact == wanted


def test_batches_get_smaller_and_stay_so() -> None:
    ways = Ways(CPU, (8, 4, 2, 1))

    def work(some: slice) -> tuple[int, int]:
        start, stop = some.start, some.stop
        if stop > 6 and stop - start > 2:
            raise torch.OutOfMemoryError
        return start, stop

    assert list(in_batches(ways, 9, work)) == [(0, 4), (4, 6), (6, 8), (8, 9)]
    assert list(in_batches(ways, 3, work)) == [(0, 2), (2, 3)]
