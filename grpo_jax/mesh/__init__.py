"""Where arrays live: the device mesh, and the rules that map logical axes to it."""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.mesh.compile": ("jit",),
        "grpo_jax.mesh.mesh": ("fetch", "make_mesh"),
        "grpo_jax.mesh.rules": ("constrain", "sharding", "spec", "specs"),
        "grpo_jax.mesh.settings": ("AXES", "MeshSettings", "Rules"),
    },
)
