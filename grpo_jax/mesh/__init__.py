"""Where arrays live: the device mesh, and the rules that map logical axes to it."""

from grpo_jax.mesh.compile import jit
from grpo_jax.mesh.mesh import AXES, fetch, make_mesh
from grpo_jax.mesh.rules import RULES, constrain, sharding, spec, specs

__all__ = ["AXES", "RULES", "constrain", "fetch", "jit", "make_mesh", "sharding", "spec", "specs"]
