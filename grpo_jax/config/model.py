"""The model that a configuration describes: where its weights are, its shape, its tokenizer and its adapters."""

from __future__ import annotations

import dataclasses

import jax

from grpo_jax.config.error import ConfigError, problem
from grpo_jax.config.load import to_dict
from grpo_jax.config.schema import Config
from grpo_jax.data import PRINTABLE, CharTokenizer, Tokenizer, arithmetic
from grpo_jax.data.hf_tokenizer import HfTokenizer
from grpo_jax.mesh.rules import RULES
from grpo_jax.models import DecoderConfig, Lora, init, logical_axes
from grpo_jax.models.weights import Source, check, read_source, resolve_model

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

    source: Source | None
    shape: DecoderConfig
    tokenizer: Tokenizer
    lora: Lora | None


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
    model, data = config.model, config.data
    how = {"dtype": model.dtype or "float32", "remat": model.remat, "unroll": model.unroll}
    if model.path is not None:
        how["dtype"] = model.dtype or "bfloat16"
        source = read_source(resolve_model(model.path))
        check(source.directory, source.config, source.names)
        shape = dataclasses.replace(source.config, **how)
        tokenizer = HfTokenizer(
            source.directory,
            vocab=shape.vocab,
            template=data.template,
            system=data.system,
            options=data.template_options,
        )
        return Model(source=source, shape=shape, tokenizer=tokenizer, lora=_lora(config))
    tokenizer = CharTokenizer(_alphabet(config))
    shape = DecoderConfig(
        vocab=tokenizer.vocab_size,
        hidden=model.hidden,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_width=model.head_width or model.hidden // model.heads,
        mlp=model.mlp,
        tied=model.tied,
        qkv_bias=model.qkv_bias,
        qk_norm=model.qk_norm,
        rope_theta=model.rope_theta,
        norm_eps=model.norm_eps,
        **how,
    )
    return Model(source=None, shape=shape, tokenizer=tokenizer, lora=_lora(config))


def _check_mesh(config: Config, shape: DecoderConfig) -> None:
    """Raises ConfigError unless the mesh divides every parameter of the model, by the rules of `mesh.rules`."""
    sizes = to_dict(config)["mesh"]
    axes = jax.tree.leaves(logical_axes(shape), is_leaf=lambda leaf: isinstance(leaf, tuple))
    leaves = jax.tree.leaves(jax.eval_shape(lambda: init(shape, jax.random.key(0))))
    sides = [side for names, leaf in zip(axes, leaves, strict=True) for side in zip(names, leaf.shape, strict=True)]
    problems = []
    for axis, devices in sizes.items():
        divided = sorted({side for side in sides if side[0] is not None and RULES[side[0]] == axis})
        possible = [n for n in range(1, devices) if not any(size % n for _, size in divided)]
        for name, size in divided:
            if size % devices:
                expected = f"a divisor of the model's {LENGTHS[name]} ({size})"
                problems.append(problem(f"mesh.{axis}", devices, expected, f"choose {' or '.join(map(str, possible))}"))
    if problems:
        raise ConfigError(problems)


def _alphabet(config: Config) -> str:
    if config.data.alphabet is not None:
        return config.data.alphabet
    return arithmetic.ALPHABET if config.data.source == "arithmetic" else PRINTABLE


def _lora(config: Config) -> Lora | None:
    lora = config.lora
    return None if lora.rank is None else Lora(rank=lora.rank, alpha=lora.alpha, targets=lora.targets)
