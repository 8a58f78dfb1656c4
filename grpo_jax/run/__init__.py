"""A run on the host: the loop, and what stands around the compiled step.

Read `loop.py` for the loop, `draw.py` and `group.py` for the completions of a step.
"""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.run.checkpoint": ("CheckpointError", "Checkpoints"),
        "grpo_jax.run.evaluation": ("evaluate", "pass_at_k"),
        "grpo_jax.run.group": ("Group",),
        "grpo_jax.run.loop": ("Result", "train"),
        "grpo_jax.run.resume": ("restore", "save"),
        "grpo_jax.run.run": ("Run",),
        "grpo_jax.run.settings": (
            "CheckpointSettings",
            "EvalSettings",
            "RunSettings",
            "TrainSettings",
            "WarmupSettings",
        ),
    },
)
