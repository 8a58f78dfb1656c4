"""The policy of a checkpoint, without the rest of its state: for evaluation, sampling and export."""

from __future__ import annotations

import jax

from grpo_jax.learn.state import abstract_policy
from grpo_jax.models.config import DecoderConfig
from grpo_jax.models.decoder import Params
from grpo_jax.models.lora import Adapters, attach
from grpo_jax.models.settings import Lora
from grpo_jax.models.weights.source import ModelSource
from grpo_jax.run.base import read_base
from grpo_jax.run.checkpoint import Checkpoints


def restore_policy(
    saved: Checkpoints,
    step: int,
    mesh: jax.sharding.Mesh,
    *,
    shape: DecoderConfig,
    lora: Lora | None = None,
    source: ModelSource | None = None,
) -> Params:
    """Returns the policy's parameters in a checkpoint, with adapters attached where there are any.

    Args:
      shape: of the decoder.
      source: where the run began; read only for weights under adapters that the checkpoint leaves out.

    Raises:
      CheckpointError: those weights have changed since.
      FileNotFoundError, ValueError: they are gone or damaged (see `weights.load`).
    """
    left_out = saved.meta(step).get("base")
    stored = lora is not None and left_out is None
    part = saved.restore_part(step, abstract_policy(shape, lora, mesh, base=stored))
    if lora is None:
        return part["params"]
    base = part["base"] if stored else read_base(source, shape, mesh, left_out)
    return attach(base, part["params"], lora)


def restore_adapters(
    saved: Checkpoints, step: int, mesh: jax.sharding.Mesh, *, shape: DecoderConfig, lora: Lora, source: ModelSource
) -> Adapters:
    """Returns the adapters in a checkpoint, for use with the model that they were trained on.

    Raises:
      CheckpointError: `source` does not hold that model any more.
      FileNotFoundError, ValueError: its weights are gone or damaged (see `weights.load`).
    """
    left_out = saved.meta(step).get("base")
    if left_out is not None:
        read_base(source, shape, mesh, left_out)
    return saved.restore_part(step, abstract_policy(shape, lora, mesh, base=False))["params"]
