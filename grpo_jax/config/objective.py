"""The raw `objective` of a configuration to the value that `core` optimises.

Written as a preset's name, or as a mapping of `preset` and the fields to replace in it:

    objective: grpo

    objective:
      preset: deepseek_r1
      kl_coef: 0.0                                # a number
      aggregate: token_mean                       # a name in the slot's module, here core.aggregate
      surrogate: {PpoClip: {low: 0.2, high: 0.28}}  # a class of that module, with its hyperparameters
      kl: {StraightThrough: {value: k3, gradient: k2}}   # a hyperparameter may be a component itself
      ratio: "my_package.my_module:my_ratio"      # anything that Python can import; a preset too
      reward_kl_coef: {AdaptiveKl: {initial: 0.1, target: 0.02}}  # a coefficient that follows a measurement

There is no registry: a name is looked up in the slot's module, so what is defined there can be written here.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from grpo_jax.core import advantage, aggregate, control, correction, kl, presets, ratio, surrogate
from grpo_jax.core import value as critic_value
from grpo_jax.core.objective import Objective
from grpo_jax.errors import ConfigError, import_named, nearest, problem

MODULES = {
    "advantage": advantage,
    "ratio": ratio,
    "surrogate": surrogate,
    "correction": correction,
    "kl": kl,
    "aggregate": aggregate,
    "value": critic_value,
}
"""The slots that hold a component, and the module in which each one's names are looked up."""


def build_objective(raw: str | Mapping[str, Any]) -> Objective:
    """Returns the objective that a configuration describes.

    >>> build_objective({"preset": "grpo", "kl_coef": 0, "surrogate": {"PpoClip": {"high": 0.28}}}).surrogate
    PpoClip(low=0.2, high=0.28, dual=None)

    Raises:
      ConfigError: no such preset, field, component or hyperparameter, or a value that they refuse; all at once.
    """
    if isinstance(raw, str):
        return _preset("objective", raw)
    if not isinstance(raw.get("preset"), str):
        form = "write objective=grpo or objective={preset: grpo, kl_coef: 0}"
        raise ConfigError([problem("objective", raw, "a preset's name, or a mapping that has one in `preset`", form)])
    start = _preset("objective.preset", raw["preset"])
    changes, problems = {}, []
    for name, value in raw.items():
        if name != "preset":
            try:
                changes[name] = _field(name, value)
            except ConfigError as error:
                problems += error.problems
    if problems:
        raise ConfigError(problems)
    try:
        return dataclasses.replace(start, **changes)
    except ValueError as error:
        raise ConfigError([f"objective: {error}"]) from error


def _preset(path: str, name: str) -> Objective:
    recipe = _lookup(path, name, presets)
    built = _call(f"{path}.{name}", recipe, {}) if callable(recipe) else recipe
    if not isinstance(built, Objective):
        raise ConfigError([problem(path, name, "a function that returns an Objective", "see core.presets")])
    return built


def _field(name: str, value: object) -> object:
    path = f"objective.{name}"
    fields = [field.name for field in dataclasses.fields(Objective)]
    if name not in fields:
        raise ConfigError([f"{path}: unknown field; {nearest(name, ['preset', *fields])}"])
    if name in MODULES:
        return _component(path, value, MODULES[name], optional=_takes_none(name))
    if isinstance(value, dict):
        return _component(path, value, control, optional=False)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError([problem(path, value, "a finite number", f"set {path}=...")])
    return float(value)


def _component(path: str, value: object, module: ModuleType, *, optional: bool) -> object:
    """Returns the function or the instance that `value` names."""
    match value:
        case None if optional:
            return None
        case str():
            name, arguments = value, None
        case dict() if len(value) == 1 and isinstance(inner := next(iter(value.values())), dict):
            name, arguments = str(next(iter(value))), inner
        case _:
            form = "a name, {ClassName: {hyperparameter: value}} or 'package.module:name'"
            known = f"known: {', '.join(_public(module))}"
            raise ConfigError([problem(path, value, form, known)])
    component = _lookup(path, name, module)
    if inspect.isclass(component) or _is_factory(component):
        arguments = {key: _argument(f"{path}.{name}.{key}", given, module) for key, given in (arguments or {}).items()}
        return _call(f"{path}.{name}", component, arguments)
    if arguments is not None:
        raise ConfigError([problem(path, value, f"no hyperparameters, {name!r} is no class", f"write {path}={name}")])
    if not (callable(component) or dataclasses.is_dataclass(component)):
        raise ConfigError([problem(path, value, f"a function or a dataclass, not {component!r}", f"set {path}=...")])
    return component


def _is_factory(component: object) -> bool:
    """Returns whether a function makes a component from hyperparameters: all that it takes is keyword-only."""
    if not inspect.isfunction(component):
        return False
    parameters = inspect.signature(component).parameters.values()
    return bool(parameters) and all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)


def _argument(path: str, value: object, module: ModuleType) -> object:
    """Returns a hyperparameter: a component of this or of another slot if it is written as one, and itself if not."""
    if isinstance(value, list):
        return tuple(_argument(path, each, module) for each in value)
    name = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else value
    if not isinstance(name, str):
        return value
    if ":" in name:
        return _component(path, value, module, optional=False)
    for place in (module, *MODULES.values()):
        if name in _public(place):
            return _component(path, value, place, optional=False)
    return value


def _lookup(path: str, name: str, module: ModuleType) -> Any:
    """Returns what `name` stands for: a public definition of `module`, or `package.module:attribute`."""
    if ":" not in name:
        known = _public(module)
        if name not in known:
            raise ConfigError([f"{path}: nothing in {module.__name__} is called {name!r}; {nearest(name, known)}"])
        return known[name]
    try:
        return import_named(name)
    except ValueError as error:
        raise ConfigError([f"{path}: {error}"]) from error


def _public(module: ModuleType) -> dict[str, Any]:
    """Returns what a module offers by name: its `__all__`, or else the public definitions of its own."""
    if hasattr(module, "__all__"):
        return {name: vars(module)[name] for name in module.__all__}
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.getmodule(value) is module
    }


def _call(path: str, function: Any, arguments: dict[str, Any]) -> object:
    """Returns `function(**arguments)`; what it refuses is named by its path."""
    problems = list(_signature_problems(path, inspect.signature(function), arguments))
    if problems:
        raise ConfigError(problems)
    try:
        return function(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"{path}: value {arguments!r} is refused: {error}"]) from error


def _signature_problems(path: str, signature: inspect.Signature, arguments: dict[str, Any]) -> Iterator[str]:
    parameters = signature.parameters
    for name in arguments:
        if name not in parameters:
            yield f"{path}.{name}: unknown field; {nearest(str(name), parameters)}"
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            yield f"{path}.{name}: missing; give it a value"


def _takes_none(slot: str) -> bool:
    return type(None) in typing.get_args(typing.get_type_hints(Objective)[slot])
