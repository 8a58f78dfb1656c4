"""Files and overrides to a configuration, and back."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import grpo_jax.config
from grpo_jax.config import ConfigError, dump, load, to_dict
from grpo_jax.config.load import from_dict
from grpo_jax.mesh.settings import MeshSettings
from grpo_jax.rewards.settings import RewardSettings
from grpo_jax.run.settings import TrainSettings

ROOT = Path(__file__).parents[2]


def test_defaults_fill_what_the_file_leaves_out(change):
    config = change()
    assert config.seed == 0
    assert config.out == "outputs/run"
    assert config.mesh == MeshSettings(data=1, group=1, fsdp=1, tensor=1)
    assert config.rewards == (RewardSettings(function="arithmetic.answer", weight=1.0),)
    assert config.optimizer.max_grad_norm == 1.0
    assert config.train.micro_prompts is None


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_file_loads_and_survives_a_round_trip(name, tmp_path):
    config = load(ROOT / "configs" / name)
    (tmp_path / "again.yaml").write_text(dump(config))
    assert load(tmp_path / "again.yaml") == config


def test_there_are_shipped_files():
    assert (ROOT / "configs" / "arithmetic.yaml").exists()


def test_an_int_becomes_a_float_where_a_number_is_expected(change):
    rate = change("optimizer.learning_rate=1").optimizer.learning_rate
    assert isinstance(rate, float)
    assert rate == 1.0


def test_fields_cannot_be_assigned(change):
    with pytest.raises(dataclasses.FrozenInstanceError):
        change().seed = 1


def test_bounds_hold_for_values_made_in_python_too():
    with pytest.raises(ValidationError, match="prompts"):
        dataclasses.replace(TrainSettings(steps=1, prompts=2), prompts=0)


@pytest.mark.parametrize(
    ("override", "field", "value"),
    [
        ("optimizer.learning_rate=1e-6", "optimizer.learning_rate", 1e-6),
        ("out=off", "out", "off"),
        ("rewards.0.weight=2", "rewards.0.weight", 2.0),
        ("mesh.data=2", "mesh.data", 2),
        ("mesh={data: 2, fsdp: 2}", "mesh.fsdp", 2),
        ("train.micro_prompts=null", "train.micro_prompts", None),
        ("eval.every=", "eval.every", None),
        (" seed = 7", "seed", 7),
        ("out=a=b", "out", "a=b"),
        ("objective={deepseek_r1: {kl_coef: 0}}", "objective", {"deepseek_r1": {"kl_coef": 0}}),
        ("objective.kl_coef=1e-3", "objective", {"preset": "grpo", "kl_coef": 1e-3}),
        (
            "objective.surrogate.PpoClip.low=0.1",
            "objective",
            {"preset": "grpo", "surrogate": {"PpoClip": {"low": 0.1}}},
        ),
    ],
)
def test_an_override_changes_one_field(change, override, field, value):
    tree = to_dict(change(override))
    for name in field.split("."):
        tree = tree[int(name)] if isinstance(tree, list) else tree[name]
    assert tree == value


def test_a_further_file_is_laid_over_the_first(change, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: dapo\ntrain: {prompts: 16}\nsampling: {group: 8}\n")
    before, after = change(), change(str(recipe), "train.steps=3")
    assert (after.objective, after.train.prompts, after.sampling.group, after.train.steps) == ("dapo", 16, 8, 3)
    assert after.sampling.max_tokens == before.sampling.max_tokens
    assert change("train.prompts=4", str(recipe)).train.prompts == 16


def test_an_objective_is_laid_over_as_a_whole(change, tmp_path):
    """Its fields belong to its preset."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("objective: {preset: dr_grpo}\n")
    assert change("objective={preset: grpo, kl_coef: 0.5}", str(recipe)).objective == {"preset": "dr_grpo"}


def test_a_further_file_that_does_not_exist_is_named(change):
    with pytest.raises(ConfigError, match=r"recipes/none\.yaml: cannot read"):
        change("recipes/none.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_fits_over_the_shipped_configuration(path):
    """A published batch on the toy task; only what is longer than the toy's texts has to be cut down."""
    recipe = load(ROOT / "configs" / "arithmetic.yaml", [str(path)])
    assert recipe.objective != load(ROOT / "configs" / "arithmetic.yaml").objective
    assert path.read_text().startswith("# ")


def test_the_later_override_wins(change):
    assert change("seed=1", "seed=2").seed == 2


def test_an_override_reaches_one_place_even_where_the_file_shares_a_mapping(path, change):
    path.write_text(path.read_text().replace("rewards: [{", "rewards: [&r {").replace("answer}]", "answer}, *r]"))
    assert [reward.weight for reward in change("rewards.1.weight=3").rewards] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.promts=4", "train.promts: unknown field; did you mean 'prompts'? (known: dynamic_rounds, epochs"),
        ("modle.x=1", "modle: unknown field; did you mean 'model'?"),
        ("rewards.0.functon=x", "rewards.0.functon: unknown field; did you mean 'function'?"),
        ("seed.x=1", "seed: value {'x': 1}; expected an integer of at least 0"),
        ("sampling.top_k=5", "sampling.top_k: value 5; expected no filter in training; remove it, or set eval.top_k"),
        ("seed=true", "seed: value True; expected an integer of at least 0"),
        ("seed=1.0", "seed: value 1.0; expected an integer"),
        ("seed='1'", "seed: value '1'; expected an integer"),
        ("seed=-1", "seed: value -1; expected an integer of at least 0"),
        ("model.tied=1", "model.tied: value 1; expected true or false"),
        ("model.tied=off", "model.tied: value 'off'; expected true or false"),
        ("model.norm_eps=true", "model.norm_eps: value True; expected a number above 0"),
        ("optimizer.learning_rate='1e-3'", "optimizer.learning_rate: value '1e-3'; expected a number above 0"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: value inf"),
        ("optimizer.learning_rate=0", "optimizer.learning_rate: value 0"),
        ("optimizer.eps=.nan", "optimizer.eps: value nan"),
        ("optimizer.weight_decay=-0.1", "optimizer.weight_decay: value -0.1; expected a number of at least 0"),
        ("optimizer.b2=1", "optimizer.b2: value 1; expected a number from 0 up to, not including, 1"),
        ("optimizer.max_grad_norm=0", "optimizer.max_grad_norm: value 0; expected a number above 0, or null"),
        ("sampling.temperature=0", "sampling.temperature: value 0; expected a number above 0"),
        ("warmup.wrong=1.5", "warmup.wrong: value 1.5; expected a number from 0 to 1"),
        ("eval.top_p=0", "eval.top_p: value 0; expected a number above 0, at most 1, or null"),
        ("eval.min_p=2", "eval.min_p: value 2; expected a number above 0, at most 1, or null"),
        ("eval.every=off", "eval.every: value 'off'; expected an integer of at least 1, or null"),
        (
            "data.template_options=off",
            "data.template_options: value 'off'; expected a mapping of names to text (a date",
        ),
        ("data.template_options.date_string=2026-01-01", "data.template_options: value datetime.date(2026, 1, 1); exp"),
        ("data.template_options={1: x}", "data.template_options: value 1; expected a mapping of names to text"),
        ("data.template_optoins.x=1", "data.template_optoins: unknown field; did you mean 'template_options'?"),
        ("mesh.data=0", "mesh.data: value 0; expected an integer of at least 1"),
        ("rewards.0.weight=.nan", "rewards.0.weight: value nan; expected a finite number"),
        ("rewards=answer", "rewards: value 'answer'; expected a list"),
        ("rewards.0=3", "rewards.0: value 3; expected a mapping with fields function, weight"),
        ("resume=perhaps", "resume: value 'perhaps'; expected 'auto' or 'never' or 'must'"),
        ("model.dtype=float16", "model.dtype: value 'float16'; expected 'float32' or 'bfloat16', or null"),
        ("out=''", "out: value ''; expected text that is not empty"),
        ("out=2026-01-01", "out: value datetime.date(2026, 1, 1); expected text"),
        ("objective=3", "objective: value 3; expected text, or a mapping"),
        ("mesh=", "mesh: value None; expected a mapping with fields data, group, fsdp, tensor"),
        ("train={prompts: 4}", "train.steps: missing; expected an integer of at least 1; set train.steps="),
        ("rewards.1.weight=1", "rewards: value [{'function': 'arithmetic.answer'}]; expected an index below 1"),
        ("rewards.last.weight=1", "expected an index below 1 in place of 'last'"),
        ("model.hidden.x=1", "model.hidden: value 32; expected a mapping that can hold 'x'"),
        ("train.steps", "override: value 'train.steps'; expected section.field=value"),
        ("=3", "override: value '=3'"),
        ("train..steps=3", "override: value 'train..steps=3'"),
        ("seed=[1", "override 'seed=[1': not valid YAML at line 1"),
        ("mesh={data: 1, data: 2}", 'duplicate key "data"'),
    ],
)
def test_a_mistake_is_named_with_its_field_and_value(change, override, message):
    with pytest.raises(ConfigError) as error:
        change(override)
    assert message in str(error.value)


def test_a_missing_section_names_its_fields(path, change):
    path.write_text(path.read_text().replace("optimizer:", "optimiser:"))
    with pytest.raises(ConfigError) as error:
        change()
    missing, unknown = sorted(error.value.problems)
    assert unknown.startswith("optimizer: missing; expected a mapping with fields learning_rate,")
    assert missing.startswith("optimiser: unknown field; did you mean 'optimizer'?")


def test_all_problems_come_at_once_each_on_its_line(change):
    with pytest.raises(ConfigError) as error:
        change("seed=x", "objective=3", "train.promts=1")
    assert [line.partition(":")[0] for line in str(error.value).splitlines()] == ["seed", "train.promts", "objective"]
    assert isinstance(error.value, ValueError)


@pytest.mark.parametrize("text", ["", "- 1", "grpo"])
def test_a_file_without_sections_is_refused(path, text):
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"run\.yaml: value .*; expected a mapping of sections"):
        load(path)


def test_keys_that_are_no_text_are_unknown_fields(path, change):
    path.write_text(path.read_text() + "1: 2\n")
    with pytest.raises(ConfigError, match="1: unknown field"):
        change()


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    for bad in (tmp_path / "absent.yaml", tmp_path):
        with pytest.raises(ConfigError, match=f"{bad}: cannot read"):
            load(bad)
    (tmp_path / "latin.yaml").write_bytes(b"out: \xe9")
    with pytest.raises(ConfigError, match=r"latin\.yaml: cannot read .*utf-8"):
        load(tmp_path / "latin.yaml")


def test_what_is_dumped_loads_back_equal(change, tmp_path):
    config = change(
        "optimizer.learning_rate=3e-7",
        "out=off",
        "objective={preset: grpo, surrogate: {PpoClip: {low: 0.2, high: .inf}}, kl: 'a.b:c'}",
        "rewards=[{function: a, weight: 1e-6}, {function: '010'}]",
        "eval.top_p=0.9",
    )
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(tmp_path / "dumped.yaml") == config
    assert from_dict(to_dict(config)) == config
    assert isinstance(to_dict(config)["rewards"], list)


@pytest.mark.parametrize(
    "options",
    [{}, {"enable_thinking": False}, {"date_string": "26 Jul 2024", "tools": [{"name": "f", "depth": 1.5}, None]}],
)
def test_the_variables_of_a_template_come_back_as_they_were_given(change, tmp_path, options):
    config = change("model={path: m}", f"data.template_options={json.dumps(options)}")
    assert config.data.template_options == options
    (tmp_path / "dumped.yaml").write_text(dump(config))
    assert load(tmp_path / "dumped.yaml") == config == from_dict(to_dict(config))
    more = load(tmp_path / "dumped.yaml", ["data.template_options.depth=2"]).data.template_options
    assert more == options | {"depth": 2}


def test_a_configuration_is_loaded_without_jax():
    """Loading stays fast, and works where there is no accelerator. So does the import of every module of settings."""
    settings = sorted(path.parent.name for path in Path(grpo_jax.__file__).parent.glob("*/settings.py"))
    program = f"""
import sys
sys.modules.update(dict.fromkeys(("jax", "flax", "optax")))
import grpo_jax
for name in {settings}:
    __import__(f"grpo_jax.{{name}}.settings")
print(grpo_jax.load("configs/arithmetic.yaml", ["lora.rank=2", "mesh.rules.embed="]).lora.rank)
"""
    assert len(settings) == 7
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("2\n", 0), done.stderr
