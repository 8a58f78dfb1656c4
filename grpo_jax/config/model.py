"""The model that a configuration describes: where its weights are, its shape, its tokenizer and its adapters."""

from __future__ import annotations

import dataclasses

import jax

from grpo_jax.config.schema import Config
from grpo_jax.data import CharTokenizer, Tokenizer
from grpo_jax.data.source import find_source
from grpo_jax.errors import ConfigError, problem
from grpo_jax.mesh import make_mesh
from grpo_jax.mesh.settings import AXES
from grpo_jax.models import DecoderConfig, Lora, decoder_config, init, logical_axes, open_model
from grpo_jax.models.config import HOW
from grpo_jax.models.settings import given
from grpo_jax.models.weights.source import ModelSource

LENGTHS = {
    "vocab": "vocabulary",
    "kv_heads": "key/value heads",
    "mlp": "feed-forward width",
    "expert": "experts",
    "embed": "width",
}
"""The logical axes that a mesh divides, in words."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model.

    Attributes:
      source: the directory of the weights that it begins from; None begins with random ones.
      shape: of the decoder.
      lora: the adapters that are trained; None trains the weights.
    """

    source: ModelSource | None
    shape: DecoderConfig
    tokenizer: Tokenizer
    lora: Lora | None


def build_mesh(config: Config) -> jax.sharding.Mesh:
    """Returns the mesh of a configuration.

    Raises:
      ValueError: there are fewer devices than it asks for.
    """
    return make_mesh(**{axis: getattr(config.mesh, axis) for axis in AXES})


def build_model(config: Config) -> Model:
    """Returns the model of a configuration; one of the hub is fetched.

    Raises:
      ConfigError: the mesh does not divide the model.
      FileNotFoundError: `model.path` is no model directory.
      ValueError: it cannot be fetched or read, or its tokenizer does not fit; the message names the file.
    """
    built = _build(config)
    _check_mesh(config, built.shape)
    return built


def _build(config: Config) -> Model:
    settings, data = config.model, config.data
    lora = config.lora if config.lora.rank is not None else None
    here = {"temperature": config.sampling.temperature, "rules": config.mesh.rules}
    if settings.path is not None:
        how = {name: value for name, value in given(settings).items() if name in HOW}
        source, shape, tokenizer = open_model(
            settings.path,
            template=data.template,
            system=data.system,
            template_options=data.template_options,
            **how,
            **here,
        )
        return Model(source=source, shape=shape, tokenizer=tokenizer, lora=lora)
    tokenizer = CharTokenizer(data.alphabet or find_source(data.source).alphabet)
    shape = decoder_config(settings, vocab=tokenizer.vocab_size, **here)
    return Model(source=None, shape=shape, tokenizer=tokenizer, lora=lora)


def _check_mesh(config: Config, shape: DecoderConfig) -> None:
    """Raises ConfigError unless the mesh divides every parameter of the model, by the mesh's rules."""
    axes = jax.tree.leaves(logical_axes(shape), is_leaf=lambda leaf: isinstance(leaf, tuple))
    leaves = jax.tree.leaves(jax.eval_shape(lambda: init(shape, jax.random.key(0))))
    sides = {side for names, leaf in zip(axes, leaves, strict=True) for side in zip(names, leaf.shape, strict=True)}
    rules, problems = config.mesh.rules, []
    for split in sorted({rules.axes(name) for name in LENGTHS}):
        devices = config.mesh.devices(split)
        divided = sorted(side for side in sides if side[0] in LENGTHS and rules.axes(side[0]) == split)
        possible = [n for n in range(1, devices) if not any(size % n for _, size in divided)]
        for name, size in divided:
            if size % devices:
                expected = f"a divisor of the model's {LENGTHS[name]} ({size})"
                fix = f"choose {' or '.join(map(str, possible))}"
                problems.append(problem(" * ".join(f"mesh.{axis}" for axis in split), devices, expected, fix))
    if problems:
        raise ConfigError(problems)
