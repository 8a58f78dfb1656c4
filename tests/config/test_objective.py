"""The raw objective of a configuration to the value that is optimised."""

import dataclasses
from pathlib import Path

import pytest

from grpo_jax.config import ConfigError, load
from grpo_jax.config.objective import build_objective
from grpo_jax.core import presets
from grpo_jax.core.advantage import GroupNormalised, ProcessNormalised
from grpo_jax.core.aggregate import EveryRow, sequence_mean, token_mean
from grpo_jax.core.control import AdaptiveKl
from grpo_jax.core.correction import Chained, RejectTokens, SequenceBand, TokenTruncated
from grpo_jax.core.kl import StraightThrough, exact, k1, k2, k3
from grpo_jax.core.ratio import per_token
from grpo_jax.core.surrogate import PpoClip, reinforce, two_sided_clip

HERE = __name__
NOT_A_TERM = 3.0


def my_kl(logp, ref_logp):
    return logp - ref_logp


def my_recipe():
    return presets.ppo_clip(high=0.28)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MySurrogate:
    scale: float
    shift: float = 0.0

    def __call__(self, log_ratio, logp, advantage):
        return -self.scale * advantage * logp + self.shift, advantage != advantage


@pytest.mark.parametrize("name", presets.__all__)
def test_a_name_is_its_preset(name):
    expected = getattr(presets, name)()
    assert build_objective(name) == expected
    assert build_objective({"preset": name}) == expected


@pytest.mark.parametrize(
    ("fields", "replaced"),
    [
        ({"kl_coef": 0}, {"kl_coef": 0.0}),
        ({"kl": "k1"}, {"kl": k1}),
        ({"kl": "exact"}, {"kl": exact}),
        ({"kl": f"{HERE}:my_kl"}, {"kl": my_kl}),
        ({"ratio": "per_token"}, {"ratio": per_token}),
        ({"aggregate": "token_mean", "kl": "k2"}, {"aggregate": token_mean, "kl": k2}),
        ({"surrogate": "reinforce"}, {"surrogate": reinforce}),
        ({"surrogate": "PpoClip"}, {"surrogate": PpoClip()}),
        ({"surrogate": {"PpoClip": {}}}, {"surrogate": PpoClip()}),
        (
            {"surrogate": {"PpoClip": {"low": 0.1, "high": 0.28, "dual": None}}},
            {"surrogate": PpoClip(low=0.1, high=0.28)},
        ),
        ({"surrogate": {f"{HERE}:MySurrogate": {"scale": 2}}}, {"surrogate": MySurrogate(scale=2)}),
        ({"advantage": {"GroupNormalised": {"ddof": 0}}}, {"advantage": GroupNormalised(ddof=0)}),
        (
            {"kl": {"StraightThrough": {"value": "k3", "gradient": "k2"}}},
            {"kl": StraightThrough(value=k3, gradient=k2)},
        ),
        ({"aggregate": {"EveryRow": {"aggregate": "sequence_mean"}}}, {"aggregate": EveryRow(aggregate=sequence_mean)}),
        (
            {"correction": {"Chained": {"corrections": ["TokenTruncated", {"SequenceBand": {"high": 2.0}}]}}},
            {"correction": Chained(corrections=(TokenTruncated(), SequenceBand(high=2.0)))},
        ),
        (
            {"correction": {"RejectTokens": {"limit": 0.1, "estimator": "k1"}}},
            {"correction": RejectTokens(limit=0.1, estimator=k1)},
        ),
        (
            {"surrogate": {"two_sided_clip": {"low": 0.2, "high": 0.2, "delta": 4.0}}},
            {"surrogate": two_sided_clip(low=0.2, high=0.2, delta=4.0)},
        ),
        (
            {"kl_coef": {"AdaptiveKl": {"initial": 0.1, "target": 0.02}}},
            {"kl_coef": AdaptiveKl(initial=0.1, target=0.02)},
        ),
        ({"advantage": "ProcessNormalised"}, {"advantage": ProcessNormalised()}),
        ({"advantage": None}, {"advantage": None}),
    ],
)
def test_a_mapping_replaces_fields_of_its_preset(fields, replaced):
    built = build_objective({"preset": "deepseek_r1", **fields})
    assert built == dataclasses.replace(presets.deepseek_r1(), **replaced)
    assert built != presets.deepseek_r1()
    assert hash(built) == hash(build_objective({"preset": "deepseek_r1", **fields}))


def test_a_coefficient_is_a_float():
    assert isinstance(build_objective({"preset": "grpo", "kl_coef": 1}).kl_coef, float)


def test_a_recipe_of_ones_own_is_imported():
    assert build_objective(f"{HERE}:my_recipe") == my_recipe()
    changed = build_objective({"preset": f"{HERE}:my_recipe", "kl_coef": 0.5})
    assert changed == dataclasses.replace(my_recipe(), kl_coef=0.5)


def test_overrides_reach_the_objective(path):
    config = load(path, ["objective=deepseek_r1", "objective.kl_coef=0", "objective.surrogate.PpoClip.high=1e-1"])
    expected = dataclasses.replace(presets.deepseek_r1(), kl_coef=0.0, surrogate=PpoClip(low=0.2, high=0.1))
    assert build_objective(config.objective) == expected


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_objective_builds(file):
    hash(build_objective(load(file).objective))


def test_the_default_file_keeps_a_reference_only_for_its_kl_term():
    path = Path(__file__).parents[2] / "configs" / "arithmetic.yaml"
    assert build_objective(load(path).objective).needs_reference
    assert not build_objective(load(path, ["objective.kl_coef=0"]).objective).needs_reference


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("grop", "objective: nothing in grpo_jax.core.presets is called 'grop'; did you mean 'grpo'?"),
        ("Objective", "objective: nothing in grpo_jax.core.presets is called 'Objective'; known: cispo, dapo"),
        (f"{HERE}:NOT_A_TERM", f"objective: value '{HERE}:NOT_A_TERM'; expected a function that returns an Objective"),
        (f"{HERE}:NO_SUCH", f"objective: {HERE} has no 'NO_SUCH'"),
        ({"preset": "gropo"}, "objective.preset: nothing in grpo_jax.core.presets is called 'gropo'"),
        ({"preset": 3}, "objective: value {'preset': 3}; expected a preset's name"),
        ({"deepseek_r1": {"kl_coef": 0}}, "write objective=grpo or objective={preset: grpo, kl_coef: 0}"),
        ({"klcoef": 1}, "objective.klcoef: unknown field; did you mean 'kl_coef'?"),
        ({"kl_coef": "1"}, "objective.kl_coef: value '1'; expected a finite number"),
        ({"kl_coef": True}, "objective.kl_coef: value True; expected a finite number"),
        ({"kl_coef": float("nan")}, "objective.kl_coef: value nan; expected a finite number"),
        ({"kl_coef": None}, "objective.kl_coef: value None; expected a finite number"),
        ({"kl_coef": -1}, "objective: kl_coef must be"),
        ({"reward_kl_coef": 1}, "objective: kl_coef=0.04 and reward_kl_coef=1.0"),
        ({"kl": "k4"}, "objective.kl: nothing in grpo_jax.core.kl is called 'k4'; did you mean 'k3'?"),
        ({"kl": "Array"}, "objective.kl: nothing in grpo_jax.core.kl is called 'Array'"),
        ({"advantage": "_standardise"}, "objective.advantage: nothing in grpo_jax.core.advantage"),
        ({"aggregate": "k3"}, "objective.aggregate: nothing in grpo_jax.core.aggregate is called 'k3'"),
        ({"surrogate": {"PpoClop": {}}}, "objective.surrogate: nothing in grpo_jax.core.surrogate is called 'PpoClop'"),
        ({"surrogate": {"PpoClip": {"lo": 1}}}, "objective.surrogate.PpoClip.lo: unknown field; did you mean 'low'?"),
        (
            {"surrogate": {"PpoClip": {"low": -1}}},
            "objective.surrogate.PpoClip: value {'low': -1} is refused: low must",
        ),
        ({"surrogate": {"PpoClip": {"low": "a"}}}, "objective.surrogate.PpoClip: value {'low': 'a'} is refused"),
        ({"surrogate": {f"{HERE}:MySurrogate": {"shift": 1}}}, f"{HERE}:MySurrogate.scale: missing"),
        ({"surrogate": {"PpoClip": 0.2}}, "objective.surrogate: value {'PpoClip': 0.2}; expected a name, {ClassName:"),
        ({"surrogate": {"PpoClip": {}, "reinforce": {}}}, "objective.surrogate: value"),
        ({"surrogate": 0.2}, "objective.surrogate: value 0.2; expected a name"),
        ({"surrogate": None}, "objective.surrogate: value None; expected a name"),
        ({"kl": {"k3": {}}}, "objective.kl: value {'k3': {}}; expected no hyperparameters, 'k3' is no class"),
        ({"kl": f"{HERE}:NOT_A_TERM"}, f"objective.kl: value '{HERE}:NOT_A_TERM'; expected a function"),
        ({"kl": f"{HERE}:my_k"}, f"objective.kl: {HERE} has no 'my_k'; did you mean 'my_kl'?"),
        ({"kl": "no_such_package.x:a"}, "objective.kl: cannot import 'no_such_package.x:a': No module named"),
        ({"kl": "..x:a"}, "objective.kl: cannot import '..x:a'"),
        ({"kl": ":a"}, "objective.kl: cannot import ':a'"),
    ],
)
def test_a_mistake_is_named_with_its_field_and_value(raw, message):
    if isinstance(raw, dict) and "preset" not in raw and "deepseek_r1" not in raw:
        raw = {"preset": "grpo", **raw}
    with pytest.raises(ConfigError) as error:
        build_objective(raw)
    assert message in str(error.value)


def test_all_problems_come_at_once():
    with pytest.raises(ConfigError) as error:
        build_objective({"preset": "grpo", "kl": "k4", "kl_coef": "x", "surrogate": {"PpoClip": {"lo": 1, "hi": 2}}})
    paths = [line.partition(":")[0] for line in error.value.problems]
    assert paths == [
        "objective.kl",
        "objective.kl_coef",
        "objective.surrogate.PpoClip.lo",
        "objective.surrogate.PpoClip.hi",
    ]
