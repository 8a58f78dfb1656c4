"""The rules that hold between fields. One field's own bounds are its type, in `schema`."""

from __future__ import annotations

from collections.abc import Iterator

from grpo_jax.config.error import ConfigError, problem
from grpo_jax.config.schema import Config


def validate(config: Config) -> None:
    """Checks the fields against each other.

    Raises:
      ConfigError: one line per contradiction, all of them at once.
    """
    rules = (_model, _lora, _data, _rewards, _batches, _mesh, _schedule)
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
    lora, every = config.lora, config.train.reference_every
    if not lora.targets or len(set(lora.targets)) < len(lora.targets):
        expected = "at least one matrix, each of them once"
        yield problem("lora.targets", list(lora.targets), expected, "name some, or set lora.rank=null")
    if lora.rank is not None and every is not None:
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
    if data.source == "arithmetic":
        if data.test is not None:
            yield problem("data.test", data.test, "null, because arithmetic makes its own held-out problems", "drop it")
        if data.url is not None:
            yield problem("data.url", data.url, "null, because arithmetic makes up its problems", "drop it")
        for field, value in (("data.train_size", data.train_size), ("data.test_size", data.test_size)):
            if value is None:
                yield problem(field, value, "a number, because arithmetic makes up its problems", f"set {field}")
        return
    for field, value in (("data.source", data.source), ("data.test", data.test)):
        if value is not None and not value.endswith(".jsonl"):
            expected = "'arithmetic' or the path of a .jsonl file" if field == "data.source" else "a .jsonl file"
            yield problem(field, value, expected, f"set {field} to one")


def _rewards(config: Config) -> Iterator[str]:
    if not config.rewards:
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


def _mesh(config: Config) -> Iterator[str]:
    """Every axis that the mesh splits is a multiple of the devices along it."""
    mesh, model, train = config.mesh, config.model, config.train
    rows = "mesh.data * mesh.fsdp", mesh.data * mesh.fsdp
    group = "mesh.group", mesh.group
    tensor = "mesh.tensor", mesh.tensor
    split: list[tuple[str, int | None, str, int]] = [
        ("train.prompts", train.prompts, *rows),
        ("train.micro_prompts", train.micro_prompts, *rows),
        ("warmup.batch", config.warmup.batch if config.warmup.steps else None, *rows),
        ("sampling.group", config.sampling.group, *group),
        ("eval.samples", config.eval.samples, *group),
        ("model.heads", model.heads, *tensor),
        ("model.kv_heads", model.kv_heads, *tensor),
        ("model.mlp", model.mlp, *tensor),
        ("model.hidden", model.hidden, "mesh.fsdp", mesh.fsdp),
    ]
    if train.prompts % train.minibatches == 0 and train.minibatches > 1:
        split.append(("train.prompts / train.minibatches", _minibatch(config), *rows))
    for field, value, axis, devices in split:
        if value is not None and value % devices:
            yield problem(field, value, f"a multiple of {axis} ({devices})", f"change {field} or the mesh")


def _schedule(config: Config) -> Iterator[str]:
    updates = config.train.steps * config.train.epochs * config.train.minibatches
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
