"""The ways to merge, by name; each one is a function from two adapters and their calibrations to coefficients."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ziplora.failure import Failure
from ziplora.recipe import Calibration, JointCalibration, Parameter, Recipe

from . import dare, direct, np_lora, ties, ziplora, ziplora_joint, ziplora_lsq
from .solution import Problem, Solution


@dataclass(frozen=True)
class Method:
    """How a method is run, and what it is told."""

    solve: Callable[[Problem, Any], Solution]
    parameters: type[Any]
    """A frozen dataclass, whose defaults are the method's."""
    calibrated: bool
    """Whether it needs the two calibrations."""
    joint: bool = False
    """Whether it needs one of joint prompts as well."""


METHODS: Mapping[str, Method] = {
    "direct": Method(direct.solve, direct.Parameters, calibrated=False),
    "ziplora": Method(ziplora.solve, ziplora.Parameters, calibrated=True),
    "ziplora-joint": Method(ziplora_joint.solve, ziplora_joint.Parameters, calibrated=True, joint=True),
    "ziplora-lsq": Method(ziplora_lsq.solve, ziplora_lsq.Parameters, calibrated=True),
    "np-lora": Method(np_lora.solve, np_lora.Parameters, calibrated=False),
    "ties": Method(ties.solve, ties.Parameters, calibrated=False),
    "dare": Method(dare.solve, dare.Parameters, calibrated=False),
}


def method_named(name: str) -> Method:
    """The method, or a failure that names the nearest one."""
    if name not in METHODS:
        fact = f"There is no method {name!r}{_nearest(name, METHODS)}."
        raise Failure("METHOD_UNKNOWN", fact, f"choose one of {', '.join(METHODS)}.")
    return METHODS[name]


def complete_parameters(name: str, given: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """All parameters of a method, checked, defaults filled in: what a recipe holds."""
    return asdict(read_parameters(name, given))


def recipe_for(
    method: str,
    given: Mapping[str, Parameter],
    subject: Calibration,
    style: Calibration,
    joint: JointCalibration,
    seed: int = 0,
) -> Recipe:
    """A method's recipe for two adapters, each named by its calibration; what a method does not need is left out."""
    needs = method_named(method)
    return Recipe(
        subject_sha256=subject.adapter_sha256,
        style_sha256=style.adapter_sha256,
        base_model=subject.base_model,
        base_revision=subject.base_revision,
        method=method,
        parameters=complete_parameters(method, given),
        subject_calibration=subject if needs.calibrated else None,
        style_calibration=style if needs.calibrated else None,
        joint=joint if needs.joint else None,
        seed=seed,
    )


def read_parameters(name: str, given: Mapping[str, Parameter]) -> Any:
    """The method's own parameters object from a recipe's mapping."""
    kind = method_named(name).parameters
    known: dict[str, Any] = {field.name: field.default for field in fields(kind)}
    for parameter, value in given.items():
        if parameter not in known:
            fact = f"Method {name} has no parameter {parameter!r}{_nearest(parameter, known)}."
            raise Failure("PARAMETER_INVALID", fact, f"its parameters are {', '.join(known)}.")
        if not _same_kind(value, known[parameter]):
            expected = type(known[parameter]).__name__
            fact = f"Parameter {parameter} of method {name} is {value!r}, not of type {expected}."
            raise Failure("PARAMETER_INVALID", fact, f"its default is {known[parameter]!r}.")
    return kind(**{key: type(known[key])(value) for key, value in given.items()})


def _same_kind(value: object, default: object) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is type(default)


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; the nearest is {near[0]!r}" if near else ""
