"""The device mesh, and arrays on their way into and out of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from grpo_jax.mesh.settings import AXES


def make_mesh(*, data: int = 1, group: int = 1, fsdp: int = 1, tensor: int = 1, devices=None) -> jax.sharding.Mesh:
    """Returns a mesh with the axes `data`, `group`, `fsdp`, `tensor`.

    Args:
      data, group, fsdp, tensor: devices along each axis.
      devices: the devices to use; by default the first `data * group * fsdp * tensor` of `jax.devices()`.

    Raises:
      ValueError: there are fewer devices than the axes ask for.
    """
    shape = (data, group, fsdp, tensor)
    devices = jax.devices() if devices is None else devices
    needed = math.prod(shape)
    if needed > len(devices):
        sizes = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
        raise ValueError(
            f"mesh: {sizes} needs {needed} devices, this process sees {len(devices)}; make the product of the axes "
            f"at most {len(devices)}"
        )
    # make_mesh would give Explicit axes; ours are Auto, placed by `constrain` and the compiler.
    auto = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(shape, AXES, axis_types=auto, devices=devices[:needed])


def devices_along(mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh, axes: Sequence[str]) -> int:
    """Returns the number of devices along these axes together; 1 for axes that the mesh does not have."""
    return math.prod(dict(mesh.shape).get(axis, 1) for axis in axes)


def fetch(tree: Any) -> Any:
    """Returns global arrays as NumPy arrays, whole on every process."""
    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)
