"""From a rollout and its rewards to the batch that an update reads, with only the scores that the objective uses."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from grpo_jax.core.control import initial_value
from grpo_jax.core.logprobs import TokenLogprobs
from grpo_jax.core.masking import as_float
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.core.shaping import soft_overlong
from grpo_jax.core.slots import asks, fill
from grpo_jax.learn.critic import values
from grpo_jax.learn.grading import grade, valid_tokens
from grpo_jax.learn.layout import Layout
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.scoring import by_rows, padded_layout, score
from grpo_jax.learn.state import TrainState, policy_params, reference_params
from grpo_jax.models.decoder import hidden_states
from grpo_jax.types import Grades, PromptBatch, Rollout, TokenBatch


def token_batch(
    learner: Learner,
    state: TrainState,
    prompt: PromptBatch,
    rollout: Rollout,
    grades: Grades,
    layout: Layout | None = None,
) -> TokenBatch:
    """Returns the batch of an update: `grade` and `score`, as the objective needs them.

    Nothing is computed that no term asks for: without a KL term nothing of the reference, without a critic no values;
    with one update per rollout no old log-probs, because the policy that samples is the policy that learns.

    Args:
      layout: the tokens that models compute (`pack`): all that were drawn, of completions with a reward. None computes
        every position, padding too.
    """
    objective, updates, tokens = learner.objective, learner.updates, rollout.tokens
    if layout is None:
        layout = padded_layout(prompt, tokens, updates.micro_prompts or tokens.shape[0] // updates.minibatches)
    grades = dataclasses.replace(grades, valid=grades.valid & jnp.isfinite(grades.reward))
    mask = valid_tokens(grades, rollout.mask)
    selects = asks(getattr(objective.surrogate, "select", None))
    ref = reference_params(state)
    old = ref_logp = ref_hidden = value = None
    if updates.updates > 1 or {"old_logp", "entropy"} & set(selects):
        policy = policy_params(learner, state)
        old = score(learner.model, policy, prompt, tokens, layout=layout, entropy="entropy" in selects)
    if objective.kl_coef and objective.full_vocabulary:
        ref_hidden = by_rows(lambda rows: hidden_states(learner.model, ref, rows), prompt, tokens, layout)
    elif objective.needs_reference and not objective.full_vocabulary:
        ref_logp = score(learner.model, ref, prompt, tokens, layout=layout).logp
    if objective.needs_critic:
        value = by_rows(lambda rows: values(learner, state.critic.params, rows), prompt, tokens, layout)
    grades = _shaped(learner, rollout, grades)
    token_reward = _token_reward(learner, state, prompt, rollout, grades, mask, ref_logp, layout)
    advantage = grade(objective, grades, rollout.mask, token_reward=token_reward, value=value)
    if updates.mask_truncated:
        mask = mask & rollout.ended[..., None]
    return TokenBatch(
        prompt=prompt,
        tokens=tokens,
        mask=mask,
        advantage=advantage,
        old_logp=None if old is None or updates.updates == 1 else old.logp,
        sampler_logp=rollout.logp,
        ref_logp=ref_logp,
        ref_hidden=ref_hidden,
        selected=_selected(learner, state, old, mask, advantage),
        value=value,
        returns=None if value is None else objective.advantage.returns(token_reward, value, mask),
    )


def _shaped(learner: Learner, rollout: Rollout, grades: Grades) -> Grades:
    """Returns the rewards, lower where a completion comes close to the limit on its length."""
    reward, updates = as_float(grades.reward), learner.updates
    if updates.overlong_buffer is not None:
        length, limit = jnp.sum(rollout.mask, axis=-1), rollout.mask.shape[-1]
        reward += updates.overlong_penalty * soft_overlong(length, limit=limit, buffer=updates.overlong_buffer)
    return dataclasses.replace(grades, reward=reward)


def _token_reward(
    learner: Learner,
    state: TrainState,
    prompt: PromptBatch,
    rollout: Rollout,
    grades: Grades,
    mask: jax.Array,
    ref_logp: jax.Array | None,
    layout: Layout,
) -> Float[Array, "P G T"]:
    """Returns the reward of each token: the score at the end, less the KL of the sampling policy where it counts."""
    objective = learner.objective
    coef = state.controls.get("reward_kl_coef", initial_value(objective.reward_kl_coef))
    kl = jnp.zeros(mask.shape)
    if objective.reward_kl_coef:
        known = {"mask": mask, "log_ratio": kl, "importance_log_ratio": kl}
        if objective.full_vocabulary:
            policy = policy_params(learner, state)
            known["divergence"] = score(
                learner.model,
                policy,
                prompt,
                rollout.tokens,
                layout=layout,
                reference=reference_params(state),
                divergence=objective.kl.divergence,
            ).divergence
        kl = objective.kl(rollout.logp, ref_logp, **fill("kl", objective.kl, known))
    return reward_with_kl(grades.reward, kl, mask, coef=coef)


def _selected(
    learner: Learner, state: TrainState, old: TokenLogprobs | None, mask: jax.Array, advantage: jax.Array
) -> Bool[Array, "P G T"] | None:
    """Returns the tokens that the surrogate picks out of the whole batch."""
    select = getattr(learner.objective.surrogate, "select", None)
    if select is None:
        return None
    available = {"mask": mask, "advantage": advantage, "key": jax.random.fold_in(jax.random.key(0), state.step)}
    if old is not None:
        available |= {"old_logp": old.logp, "entropy": old.entropy}
    return select(**fill("surrogate.select", select, available))
