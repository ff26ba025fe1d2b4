"""A loop that reaches a known optimum and does not notice being stopped."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ziplora.tinyworld.training import LossOfStep, Schedule, Trained, fit

_CPU = torch.device("cpu")
_SHORT = Schedule(steps=47, learning_rate=0.05, warmup_steps=5, ema_decay=0.9, checkpoint_every=10)


class PowerCut(Exception):  # noqa: N818 - not an error of ours
    """What happens to a training in the middle of the night."""


def _never(step: int, generator: torch.Generator) -> Tensor:
    raise AssertionError(f"step {step} was run again")


def _small_network() -> nn.Module:
    torch.manual_seed(0)
    layers: nn.Module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 2))
    layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs have no such overload
    return layers


def _denoising_loss(model: nn.Module) -> LossOfStep:
    def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
        images = torch.randn((4, 3, 6, 6), generator=generator)
        return F.mse_loss(model(images), images.mean((2, 3))[:, :2])

    return loss_of_step


def _stopped_at(step: int, loss_of_step: LossOfStep) -> LossOfStep:
    def until_the_cut(at: int, generator: torch.Generator) -> Tensor:
        if at == step:
            raise PowerCut
        return loss_of_step(at, generator)

    return until_the_cut


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.state_dict().items()}


def _assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    for (key, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


def _fit(model: nn.Module, work: Path, wrap: Callable[[LossOfStep], LossOfStep] = lambda loss: loss) -> Trained:
    return fit("small", model, wrap(_denoising_loss(model)), _SHORT, work, seed=1, device=_CPU)


def test_linear_regression_converges_to_the_closed_form(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((64, 3), generator=generator)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.3 * torch.randn((64, 1), generator=generator)
    best = torch.linalg.lstsq(torch.cat([inputs, torch.ones(64, 1)], dim=1), targets).solution
    model = nn.Linear(3, 1)
    schedule = Schedule(steps=600, learning_rate=0.05, warmup_steps=10, weight_decay=0.0, checkpoint_every=600)
    trained = fit("line", model, lambda *_: F.mse_loss(model(inputs), targets), schedule, tmp_path, 0, _CPU)
    torch.testing.assert_close(torch.cat([model.weight[0], model.bias]), best[:, 0], atol=1e-3, rtol=0)
    residual = targets - torch.cat([inputs, torch.ones(64, 1)], dim=1) @ best
    assert trained.loss == pytest.approx(residual.square().mean().item(), rel=1e-3)


@pytest.mark.parametrize("cut", [10, 25, 46], ids=["at a checkpoint", "between checkpoints", "in the last step"])
def test_a_stopped_training_ends_with_the_weights_it_would_have_had(tmp_path: Path, cut: int) -> None:
    uninterrupted = _small_network()
    _fit(uninterrupted, tmp_path / "uninterrupted")
    interrupted = _small_network()
    with pytest.raises(PowerCut):
        _fit(interrupted, tmp_path / "interrupted", lambda loss: _stopped_at(cut, loss))
    resumed = _small_network()
    _fit(resumed, tmp_path / "interrupted")
    _assert_same_weights(resumed, uninterrupted)


def test_a_training_stopped_before_its_first_checkpoint_starts_over(tmp_path: Path) -> None:
    uninterrupted, resumed = _small_network(), _small_network()
    _fit(uninterrupted, tmp_path / "uninterrupted")
    with pytest.raises(PowerCut):
        _fit(_small_network(), tmp_path / "interrupted", lambda loss: _stopped_at(5, loss))
    _fit(resumed, tmp_path / "interrupted")
    _assert_same_weights(resumed, uninterrupted)


def test_a_resumed_training_runs_only_the_steps_after_its_checkpoint(tmp_path: Path) -> None:
    ran: list[int] = []

    def noted(loss_of_step: LossOfStep) -> LossOfStep:
        def loss_and_note(step: int, generator: torch.Generator) -> Tensor:
            ran.append(step)
            return loss_of_step(step, generator)

        return loss_and_note

    with pytest.raises(PowerCut):
        _fit(_small_network(), tmp_path, lambda loss: _stopped_at(25, loss))
    _fit(_small_network(), tmp_path, noted)
    assert ran == list(range(20, 47))


def test_a_done_training_gives_its_figures_and_averaged_weights_without_a_step(tmp_path: Path) -> None:
    first, again = _small_network(), _small_network()
    trained = _fit(first, tmp_path)
    assert _fit(again, tmp_path, lambda _: _never) == trained
    _assert_same_weights(again, first)
    assert not again.training


def test_a_model_ends_with_its_averaged_weights_and_keeps_its_last_without_averaging(tmp_path: Path) -> None:
    models = {decay: nn.Linear(1, 1, bias=False) for decay in (None, 0.999)}
    for decay, model in models.items():
        nn.init.zeros_(model.weight)
        schedule = Schedule(steps=40, learning_rate=0.01, warmup_steps=1, weight_decay=0.0, ema_decay=decay)
        fit(str(decay), model, lambda *_, model=model: -model.weight.sum(), schedule, tmp_path, 0, _CPU)
    assert 0 < models[0.999].weight.item() < models[None].weight.item()


def test_frozen_parameters_stay_as_they_were(tmp_path: Path) -> None:
    model = _small_network()
    first_layer = next(model.children()).requires_grad_(requires_grad=False)
    before, frozen = _weights(model), _weights(first_layer)
    _fit(model, tmp_path)
    assert all(torch.equal(tensor, frozen[key]) for key, tensor in first_layer.state_dict().items())
    assert not torch.equal(model.state_dict()["3.weight"], before["3.weight"])


def test_a_parameter_without_part_in_the_loss_does_not_hinder_stopping_and_resuming(tmp_path: Path) -> None:
    def with_an_idle_parameter() -> nn.Module:
        model = _small_network()
        model.register_parameter("idle", nn.Parameter(torch.ones(2)))
        return model

    uninterrupted, resumed = with_an_idle_parameter(), with_an_idle_parameter()
    _fit(uninterrupted, tmp_path / "uninterrupted")
    with pytest.raises(PowerCut):
        _fit(with_an_idle_parameter(), tmp_path / "interrupted", lambda loss: _stopped_at(25, loss))
    _fit(resumed, tmp_path / "interrupted")
    _assert_same_weights(resumed, uninterrupted)


def test_the_batch_depends_on_seed_and_step_alone(tmp_path: Path) -> None:
    def drawn(seed: int, folder: str) -> list[float]:
        draws: list[float] = []
        model = nn.Linear(1, 1, bias=False)

        def loss_of_step(step: int, generator: torch.Generator) -> Tensor:
            draws.append(torch.rand((), generator=generator).item())
            torch.rand(step)  # what others draw from the global generator changes nothing
            return model.weight.square().sum()

        fit("draws", model, loss_of_step, Schedule(steps=5, learning_rate=0.1), tmp_path / folder, seed, _CPU)
        return draws

    assert drawn(1, "first") == drawn(1, "second")
    assert len({*drawn(1, "third"), *drawn(2, "fourth")}) == 10


def test_a_line_of_log_every_twenty_steps(tmp_path: Path) -> None:
    _fit(_small_network(), tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "small" / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [20, 40]
    assert all(row.keys() == {"step", "loss", "rate", "seconds"} for row in rows)


def test_the_rate_warms_up_stays_flat_and_falls_to_zero() -> None:
    schedule = Schedule(steps=1000, learning_rate=0.2, warmup_steps=100, flat_share=0.5)
    assert schedule.rate(0) == pytest.approx(0.002)
    assert schedule.rate(49) == pytest.approx(0.1)
    assert [schedule.rate(step) for step in (99, 300, 500)] == pytest.approx([0.2] * 3)
    assert schedule.rate(750) == pytest.approx(0.1)
    assert schedule.rate(1000) == pytest.approx(0)


def test_a_training_that_diverges_stops_and_its_last_sound_checkpoint_stays(tmp_path: Path) -> None:
    model = _small_network()
    loss_of_step = _denoising_loss(model)
    schedule = Schedule(steps=450, learning_rate=1e-3, checkpoint_every=150)

    def exploding_after_two_checkpoints(step: int, generator: torch.Generator) -> Tensor:
        return loss_of_step(step, generator) * (1.0 if step < 300 else 1e4)

    with pytest.raises(ArithmeticError, match="small diverged"):
        fit("small", model, exploding_after_two_checkpoints, schedule, tmp_path, seed=1, device=_CPU)
    assert load_file(tmp_path / "small" / "state.safetensors")["progress"][0] == 300
