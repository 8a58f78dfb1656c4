"""Two objectives on the same rollouts, and the cosine between their gradients.

What it does: draws one batch of completions with random rewards, moves the policy away from the one that sampled, and
compares GRPO's gradient with that of an objective whose surrogate is defined here. What it leaves out: which of them
learns better; `train.py` beside it shows how to find out.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from train import GROUP, LENGTH, MODEL, TOKENIZER, encoded

from grpo_jax import Grades, Learner, TokenBatch, grade, gradient, grpo, init, init_state, publish, sample, sample_keys


def root_ratio(log_ratio, logp, advantage):
    """Returns -2 sqrt(r) A and where a bound acted: nowhere. The slope in log r is -sqrt(r) A, less steep than -r A."""
    return -2 * jnp.exp(log_ratio / 2) * advantage, jnp.zeros(log_ratio.shape, bool)


def main() -> float:
    """Returns the cosine of the angle between the gradients."""
    params = init(MODEL, jax.random.key(0))
    prompt, keys = encoded(["47+85=?", "31-12=?"]), sample_keys(0, 0, jnp.arange(2), GROUP)
    rollout = sample(MODEL, publish(MODEL, params), prompt, keys, max_tokens=LENGTH, eos_ids=TOKENIZER.eos_ids)
    reward = jax.random.uniform(jax.random.key(1), (2, GROUP))
    grades = Grades(reward=reward, valid=jnp.ones((2, GROUP), bool))
    moved = jax.tree.map(lambda x: x + 0.1 * x.std() * jax.random.normal(jax.random.key(2), x.shape), params)

    gradients = []
    for objective in (grpo(), dataclasses.replace(grpo(), surrogate=root_ratio)):
        learner = Learner(model=MODEL, objective=objective, optimizer=optax.identity())
        batch = TokenBatch(
            prompt=prompt,
            tokens=rollout.tokens,
            mask=rollout.mask,
            advantage=grade(objective, grades, rollout.mask),
            old_logp=rollout.logp,
            ref_logp=rollout.logp,
        )
        gradients.append(gradient(learner, init_state(learner, moved), batch)[0]["policy"])
    one, other = (jax.flatten_util.ravel_pytree(each)[0] for each in gradients)
    cosine = float(one @ other / jnp.linalg.norm(one) / jnp.linalg.norm(other))
    print(f"cosine of the gradients of PPO's clip and of the root of the ratio: {cosine:.4f}")
    return cosine


if __name__ == "__main__":
    main()
