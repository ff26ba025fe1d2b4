"""The production methods compute what the oracle computes: objective, gradients, coefficients, exported file."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from ziplora.adapter import read
from ziplora.backbone import Sdxl
from ziplora.calibration import Calibrated, calibrate
from ziplora.export import write_adapter
from ziplora.keys import Module
from ziplora.methods import ziplora_lsq
from ziplora.methods.descent import row_schedule
from ziplora.methods.solution import Problem, unheard
from ziplora.methods.student import Student
from ziplora.methods.ziplora import Parameters, objective, solve
from ziplora.pair import DIRECT, Pair, merged_layers
from ziplora.recipe import Export
from ziplora.store import Store

from .conftest import Lora
from .oracle import Oracle, Sample, adam

FORMS = ("cosine", "mean", "literal")


def samples_of(calibrated: Calibrated, rows: Sequence[int]) -> list[Sample]:
    told = calibrated.condition
    return [
        Sample(calibrated.noisy[row][None], calibrated.timesteps[row], told.hidden, told.pooled, told.time_ids)
        for row in rows
    ]


def problem_of(backbone: Sdxl, subject: Lora, style: Lora, store: Store, samples: int) -> Problem:
    sides = [
        calibrate(lora.calibration(samples), lora.path, backbone, store, lora.references) for lora in (subject, style)
    ]
    pair = Pair(read(subject.path).layers, read(style.path).layers)
    return Problem(pair, backbone, sides[0], sides[1], seed=0, progress=unheard)


@pytest.fixture(scope="module")
def problem(backbone64: Sdxl, subject: Lora, style: Lora, tmp_path_factory: pytest.TempPathFactory) -> Problem:
    return problem_of(backbone64, subject, style, Store(tmp_path_factory.mktemp("store")), samples=4)


@pytest.fixture
def oracle(backbone64: Sdxl, subject: Lora, style: Lora) -> Oracle:
    return Oracle(backbone64.pipeline.unet, subject.unet, style.unet)


def oracle_losses(
    oracle: Oracle, problem: Problem, rows: Sequence[Tensor], parameters: Parameters
) -> tuple[Tensor, Tensor, Tensor]:
    losses = []
    for calibrated, own, chosen in zip(problem.calibrations, (oracle.subject, oracle.style), rows, strict=True):
        everything = samples_of(calibrated, range(len(calibrated.noisy)))
        effect = oracle.effect(everything, own) if parameters.balanced else None
        losses.append(oracle.side_loss(samples_of(calibrated, chosen.tolist()), own, effect))
    return losses[0], losses[1], oracle.third_term(parameters.third_term)


@pytest.mark.parametrize("balanced", [True, False], ids=["balanced", "as-printed"])
@pytest.mark.parametrize("form", FORMS)
def test_objective_and_gradient(form: str, balanced: bool, problem: Problem, oracle: Oracle) -> None:
    parameters = Parameters(third_term=form, balanced=balanced, third_term_weight=0.3)
    student = Student(problem, DIRECT)
    with torch.no_grad():  # away from the start, where every cosine is 1 and has no slope
        student.flat += 0.3 * torch.randn(student.flat.shape, generator=torch.Generator().manual_seed(3))
        learned = [vector.requires_grad_() for vector in torch.split(student.flat.clone(), student.widths * 2)]
    assert [module.path for module in student.modules] == oracle.learned
    oracle.m_subject = dict(zip(oracle.learned, learned[: len(oracle.learned)], strict=True))
    oracle.m_style = dict(zip(oracle.learned, learned[len(oracle.learned) :], strict=True))
    rows = (torch.tensor([2, 0]), torch.tensor([1, 3]))
    with student.installed():
        found = objective(student, problem.calibrations, rows, parameters)
        (found_gradient,) = torch.autograd.grad(found[0] + found[1] + 0.3 * found[2], student.flat)
    wanted = oracle_losses(oracle, problem, rows, parameters)
    wanted_gradient = torch.autograd.grad(wanted[0] + wanted[1] + 0.3 * wanted[2], learned)
    torch.testing.assert_close(torch.stack(found), torch.stack(wanted), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found_gradient, torch.cat(wanted_gradient), rtol=1e-7, atol=1e-11)


def test_five_steps_and_the_file(problem: Problem, oracle: Oracle, store: Store) -> None:
    parameters = Parameters(steps=5, samples_per_step=2)
    solution = solve(problem, parameters)
    schedules = [row_schedule(side, 5, 2, problem.seed) for side in problem.calibrations]
    state: dict[str, list[Tensor]] = {}
    for vector in oracle.coefficients:
        vector.requires_grad_()
    for step in range(5):
        losses = oracle_losses(oracle, problem, [schedule[step] for schedule in schedules], parameters)
        total = losses[0] + losses[1] + parameters.third_term_weight * losses[2]
        gradients = torch.autograd.grad(total, oracle.coefficients)
        with torch.no_grad():
            adam(oracle.coefficients, gradients, state, step + 1, parameters.learning_rate)
    for name in oracle.learned:
        module = Module("unet", name)
        for found, wanted in (
            (solution.coefficients.subject[module], oracle.m_subject[name]),
            (solution.coefficients.style[module], oracle.m_style[name]),
        ):
            torch.testing.assert_close(found, wanted.detach(), rtol=0, atol=1e-9)
    assert solution.coefficients.movement() > 0.04

    merged = merged_layers(problem.pair, solution.coefficients)
    for precision, tolerance in (("float32", 1e-5), ("float16", 3e-3)):
        path = store.root / f"{precision}.safetensors"
        write_adapter(path, merged, Export(precision=precision), {})  # type: ignore[arg-type]
        written = read(path).layers
        for name, change in oracle.merged().items():
            error = (written[Module("unet", name)].delta() - change).abs().max() / change.abs().max()
            assert error <= tolerance, f"{precision} {name}: {float(error):.2g} of the largest change"


@pytest.mark.parametrize("passes", [1, 2])
def test_least_squares(passes: int, backbone64: Sdxl, subject: Lora, style: Lora, oracle: Oracle, store: Store) -> None:
    problem = problem_of(backbone64, subject, style, store, samples=2)
    found = ziplora_lsq.least_squares(problem, ziplora_lsq.Parameters(passes=passes))
    sides = [samples_of(calibrated, range(2)) for calibrated in problem.calibrations]
    alone = (oracle.subject, oracle.style)
    weights = [1 / oracle.effect(samples, own) for samples, own in zip(sides, alone, strict=True)]
    models = list(alone)
    if passes == 2:
        first = ziplora_lsq.least_squares(problem, ziplora_lsq.Parameters(passes=1))
        oracle.m_subject = {module.path: vector for module, vector in first.subject.items()}
        oracle.m_style = {module.path: vector for module, vector in first.style.items()}
        models = [oracle.merged()] * 2
    for end in ("attn1.to_q", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_out.0"):
        name = next(name for name in oracle.learned if name.startswith("up_blocks") and name.endswith(end))
        inputs = [oracle.inputs(name, samples, model) for samples, model in zip(sides, models, strict=True)]
        m_subject, m_style = oracle.least_squares(name, inputs, weights, ridge=0.01)
        torch.testing.assert_close(found.subject[Module("unet", name)], m_subject, rtol=0, atol=1e-7)
        torch.testing.assert_close(found.style[Module("unet", name)], m_style, rtol=0, atol=1e-7)
