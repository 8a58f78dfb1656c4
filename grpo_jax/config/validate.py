"""The rules that hold between fields. One field's own bounds are its type, in `schema`."""

from __future__ import annotations

from collections.abc import Iterator

from grpo_jax.config.schema import Config
from grpo_jax.data.source import find_source
from grpo_jax.errors import ConfigError, problem


def validate(config: Config) -> None:
    """Checks the fields against each other.

    Raises:
      ConfigError: one line per contradiction, all of them at once.
    """
    rules = (_model, _lora, _data, _rewards, _batches, _rows, _mesh, _schedule)
    problems = [line for rule in rules for line in rule(config)]
    if problems:
        raise ConfigError(problems)


SHAPE = ("hidden", "layers", "heads", "kv_heads", "mlp")
"""Fields without which there is no new model, and which a model that exists has already."""


def _model(config: Config) -> Iterator[str]:
    model = config.model
    if model.path is not None:
        for name in (*SHAPE, "head_width"):
            value = getattr(model, name)
            if value is not None:
                yield problem(f"model.{name}", value, "null, because model.path has its own shape", "drop it")
        return
    missing = [name for name in SHAPE if getattr(model, name) is None]
    for name in missing:
        yield f"model.{name}: missing; expected an integer of at least 1; set model.{name}, or model.path"
    if missing:
        return
    if model.heads % model.kv_heads:
        yield problem(
            "model.kv_heads", model.kv_heads, f"a divisor of model.heads ({model.heads})", "change one of the two"
        )
    width, field = model.head_width, "model.head_width"
    if width is None:
        if model.hidden % model.heads:
            yield problem(
                "model.hidden",
                model.hidden,
                f"a multiple of model.heads ({model.heads}), because model.head_width is null",
                "change one of the two, or set model.head_width",
            )
            return
        width, field = model.hidden // model.heads, "model.hidden / model.heads"
    if width % 2:
        yield problem(field, width, "an even head width, because rotations turn pairs", "set an even model.head_width")


def _lora(config: Config) -> Iterator[str]:
    every = config.train.reference_every
    if config.lora.rank is not None and every is not None:
        expected = "null, because with lora.rank the reference is the weights that never change"
        yield problem("train.reference_every", every, expected, "drop it, or set lora.rank=null")


def _data(config: Config) -> Iterator[str]:
    data = config.data
    if config.model.path is not None and data.alphabet is not None:
        yield problem("data.alphabet", data.alphabet, "null, because model.path has its own tokenizer", "drop it")
    for field, value in (("data.template", data.template), ("data.system", data.system)):
        if config.model.path is None and value is not None:
            yield problem(field, value, "null, because a new model's tokenizer has no templates", "set model.path")
    if config.model.path is None and data.template_options:
        expected = "{}, because a new model's tokenizer has no templates"
        yield problem("data.template_options", data.template_options, expected, "set model.path")
    try:
        yield from find_source(data.source).check(data)
    except ValueError as error:
        yield str(error)


def _rewards(config: Config) -> Iterator[str]:
    if not config.rewards and not _source_rewards(config):
        yield problem("rewards", [], "at least one reward", "set rewards=[{function: name}]")
    buffer, limit = config.train.overlong_buffer, config.sampling.max_tokens
    if buffer is not None and buffer > limit:
        yield problem("train.overlong_buffer", buffer, f"at most sampling.max_tokens ({limit})", "lower it")


def _batches(config: Config) -> Iterator[str]:
    train = config.train
    if train.prompts % train.minibatches:
        yield problem(
            "train.minibatches",
            train.minibatches,
            f"a divisor of train.prompts ({train.prompts})",
            "change one of the two",
        )
    elif train.micro_prompts is not None and _minibatch(config) % train.micro_prompts:
        yield problem(
            "train.micro_prompts",
            train.micro_prompts,
            f"a divisor of train.prompts / train.minibatches ({_minibatch(config)})",
            "choose a divisor, or null for a whole minibatch",
        )


def _rows(config: Config) -> Iterator[str]:
    """Rows that are drawn at once are whole groups, and each device has as many as the others."""
    rows, group = config.sampling.rows, config.sampling.group
    devices = config.mesh.devices(config.mesh.rules.axes("prompt"))
    if rows is not None and rows % (group * devices):
        expected = f"a multiple of sampling.group ({group})"
        if devices > 1:
            expected += f" times the {devices} devices along prompts"
        yield problem("sampling.rows", rows, expected, "change it, or null to draw all at once")


def _mesh(config: Config) -> Iterator[str]:
    """Every axis that the mesh splits is a multiple of the devices along it."""
    model, train = config.model, config.train
    split: list[tuple[str, int | None, str]] = [
        ("train.prompts", train.prompts, "prompt"),
        ("train.micro_prompts", train.micro_prompts, "prompt"),
        ("warmup.batch", config.warmup.batch if config.warmup.steps else None, "prompt"),
        ("sampling.group", config.sampling.group, "sample"),
        ("eval.samples", config.eval.samples, "sample"),
        ("model.heads", model.heads, "kv_heads"),
        ("model.kv_heads", model.kv_heads, "kv_heads"),
        ("model.mlp", model.mlp, "mlp"),
        ("model.hidden", model.hidden, "embed"),
    ]
    if train.prompts % train.minibatches == 0 and train.minibatches > 1:
        split.append(("train.prompts / train.minibatches", _minibatch(config), "prompt"))
    for field, value, axis in split:
        names = config.mesh.rules.axes(axis)
        devices = config.mesh.devices(names)
        if value is not None and value % devices:
            sizes = " * ".join(f"mesh.{name}" for name in names)
            yield problem(field, value, f"a multiple of {sizes} ({devices})", f"change {field} or the mesh")


def _schedule(config: Config) -> Iterator[str]:
    updates = config.train.all_updates
    optimizer = config.optimizer
    if optimizer.schedule != "constant" and optimizer.warmup_steps >= updates:
        yield problem(
            "optimizer.warmup_steps",
            optimizer.warmup_steps,
            f"below the {updates} updates of the run (train.steps * train.epochs * train.minibatches), "
            f"because optimizer.schedule is {optimizer.schedule!r}",
            "lower it, or set optimizer.schedule=constant",
        )


def _minibatch(config: Config) -> int:
    return config.train.prompts // config.train.minibatches


def _source_rewards(config: Config) -> bool:
    try:
        return bool(find_source(config.data.source).rewards)
    except ValueError:
        return True  # said by the rule of the data
