"""The stateless training step, pure and ready to be compiled: score, grade, update, and the state between updates.

Read `step.py` for the update, `batch.py` for what it reads, `state.py` for what it changes.
"""

from grpo_jax.lazy import exports

__all__, __getattr__, __dir__ = exports(
    __name__,
    {
        "grpo_jax.learn.batch": ("token_batch",),
        "grpo_jax.learn.critic": ("Critic",),
        "grpo_jax.learn.grading": ("grade",),
        "grpo_jax.learn.layout": ("Layout",),
        "grpo_jax.learn.learner": ("Learner",),
        "grpo_jax.learn.losses": ("critic_loss", "loss"),
        "grpo_jax.learn.packing": ("pack",),
        "grpo_jax.learn.optimizer": ("critic_matrices", "make_optimizer", "make_schedule", "policy_matrices"),
        "grpo_jax.learn.scoring": ("score",),
        "grpo_jax.learn.settings": ("OptimizerSettings", "UpdateSettings"),
        "grpo_jax.learn.state": (
            "TrainState",
            "abstract_state",
            "init_state",
            "policy_params",
            "reference_params",
            "renew_reference",
        ),
        "grpo_jax.learn.step": ("apply", "gradient", "minibatch_order", "update"),
    },
)
