"""From rewards to a batch that an update can read: advantages, and only the scores that the objective uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import TokenLogprobs, token_logprobs
from grpo_jax.core.control import start
from grpo_jax.core.masking import as_float, sanitise
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.core.shaping import soft_overlong
from grpo_jax.core.slots import asks, fill
from grpo_jax.models import head, hidden_states
from grpo_jax.models.decoder import Params
from grpo_jax.train.critic import values
from grpo_jax.train.learner import Learner
from grpo_jax.train.microbatch import join, split
from grpo_jax.train.state import TrainState, policy_params, reference_params
from grpo_jax.types import PromptBatch, Rollout, TokenBatch


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rewarded:
    """What the host said of each completion."""

    reward: Float[Array, "P G"]
    valid: Bool[Array, "P G"]
    """False where no reward applies: such a completion is in no mean and has no gradient."""
    step_reward: Float[Array, "P G K"] | None = None
    """Rewards of the steps of a completion, for process supervision."""
    step_end: Int[Array, "P G K"] | None = None
    """The token that ends each step."""
    step_valid: Bool[Array, "P G K"] | None = None
    term_reward: Float[Array, "P G K"] | None = None
    """What each reward function said; NaN where it does not apply."""
    term_weight: Float[Array, " K"] | None = None
    """Their weights in `reward`."""
    greedy_reward: Float[Array, " P"] | None = None
    """Reward of each prompt's greedy completion; NaN where none applies."""


def experience(
    learner: Learner, state: TrainState, prompt: PromptBatch, rollout: Rollout, rewarded: Rewarded
) -> TokenBatch:
    """Returns the batch of an update.

    Nothing is computed that no term asks for: without a KL term nothing of the reference, without a critic no values;
    with one update per rollout no old log-probs, because the policy that samples is the policy that learns.
    """
    objective, tokens = learner.objective, rollout.tokens
    rewarded = dataclasses.replace(rewarded, valid=rewarded.valid & jnp.isfinite(rewarded.reward))
    mask = rollout.mask & rewarded.valid[..., None]
    selects = asks(getattr(objective.surrogate, "select", None))
    ref = reference_params(state)
    old = ref_logp = ref_hidden = value = None
    if learner.updates > 1 or {"old_logp", "entropy"} & set(selects):
        old = score(learner, policy_params(learner, state), prompt, tokens, entropy="entropy" in selects)
    if objective.kl_coef and objective.full_vocabulary:
        ref_hidden = _map(learner, lambda part: hidden_states(learner.model, ref, *part), (prompt, tokens))
    elif objective.needs_reference and not objective.full_vocabulary:
        ref_logp = score(learner, ref, prompt, tokens).logp
    if objective.needs_critic:
        value = _map(learner, lambda part: values(learner, state.critic.params, *part), (prompt, tokens))
    rewarded = _shaped(learner, rollout, rewarded)
    token_reward = _token_reward(learner, state, prompt, rollout, rewarded, mask, ref_logp)
    advantage = advantages(learner, rewarded, mask, token_reward, value)
    if learner.mask_truncated:
        mask = mask & rollout.ended[..., None]
    return TokenBatch(
        prompt=prompt,
        tokens=tokens,
        mask=mask,
        advantage=advantage,
        old_logp=None if old is None or learner.updates == 1 else old.logp,
        sampler_logp=rollout.logp,
        ref_logp=ref_logp,
        ref_hidden=ref_hidden,
        selected=_selected(learner, state, old, mask, advantage),
        value=value,
        returns=None if value is None else objective.advantage.returns(token_reward, value, mask),
    )


def advantages(
    learner: Learner,
    rewarded: Rewarded,
    mask: Bool[Array, "P G T"],
    token_reward: Float[Array, "P G T"],
    value: Float[Array, "P G T"] | None = None,
) -> Float[Array, "P G T"]:
    """Returns the advantage of every token.

    Args:
      mask: scored tokens.
      token_reward: of each token; its sum is the reward of a completion with its KL penalty.
      value: what the critic expects before each token.

    Raises:
      ValueError: the advantage asks for something that the rewards do not say, such as rewards of steps.
    """
    objective = learner.objective
    known = {field.name: getattr(rewarded, field.name) for field in dataclasses.fields(Rewarded)}
    if "step_reward" in asks(objective.advantage) and rewarded.step_reward is None:
        raise ValueError(
            f"advantage: {objective.advantage} needs rewards of steps, and no reward function returns lists of "
            "(end, value)"
        )
    available = {**known, "mask": mask, "token_reward": token_reward, "value": value}
    reward = rewarded.reward
    if objective.reward_kl_coef:
        reward = jnp.sum(token_reward, axis=-1, where=mask)
    advantage = objective.advantage(reward, rewarded.valid, **fill("advantage", objective.advantage, available))
    if advantage.ndim == mask.ndim - 1:
        advantage = jnp.broadcast_to(advantage[..., None], mask.shape)
    return sanitise(advantage, mask)


def score(
    learner: Learner,
    params: Params,
    prompt: PromptBatch,
    tokens: jax.Array,
    *,
    reference: Params | None = None,
    entropy: bool = False,
) -> TokenLogprobs:
    """Returns the log-probs of completions, with the full-vocabulary divergence from `reference` if it is given."""

    def part(batch: tuple[PromptBatch, jax.Array]) -> TokenLogprobs:
        hidden = hidden_states(learner.model, params, *batch)
        against = None
        if reference is not None:
            against = (hidden_states(learner.model, reference, *batch), head(learner.model, reference))
        return token_logprobs(
            hidden,
            head(learner.model, params),
            batch[1],
            temperature=learner.temperature,
            chunk=learner.logprob_chunk,
            soft_cap=learner.model.final_cap,
            entropy=entropy,
            reference=against,
            divergence=None if reference is None else learner.objective.kl.divergence,
        )

    return _map(learner, part, (prompt, tokens))


def _map(learner: Learner, function: Any, batch: tuple[PromptBatch, jax.Array]) -> Any:
    """Returns `function` of the batch, computed one micro-batch at a time."""
    prompts = batch[1].shape[0] // learner.minibatches
    parts = learner.micro_batches(prompts) * learner.minibatches
    if parts == 1:
        return function(batch)
    return join(jax.lax.map(function, split(batch, parts)))


def _shaped(learner: Learner, rollout: Rollout, rewarded: Rewarded) -> Rewarded:
    """Returns the rewards, lower where a completion comes close to the limit on its length."""
    reward = as_float(rewarded.reward)
    if learner.overlong_buffer is not None:
        length, limit = jnp.sum(rollout.mask, axis=-1), rollout.mask.shape[-1]
        reward += learner.overlong_penalty * soft_overlong(length, limit=limit, buffer=learner.overlong_buffer)
    return dataclasses.replace(rewarded, reward=reward)


def _token_reward(
    learner: Learner,
    state: TrainState,
    prompt: PromptBatch,
    rollout: Rollout,
    rewarded: Rewarded,
    mask: jax.Array,
    ref_logp: jax.Array | None,
) -> Float[Array, "P G T"]:
    """Returns the reward of each token: the score at the end, less the KL of the sampling policy where it counts."""
    objective = learner.objective
    coef = state.controls.get("reward_kl_coef", start(objective.reward_kl_coef))
    if not objective.reward_kl_coef:
        kl = jnp.zeros(mask.shape)
    elif objective.full_vocabulary:
        against = reference_params(state)
        kl = score(learner, policy_params(learner, state), prompt, rollout.tokens, reference=against).divergence
    else:
        extra = fill("kl", objective.kl, {"log_ratio": jnp.zeros(mask.shape)})
        kl = objective.kl(rollout.logp, ref_logp, **extra)
    return reward_with_kl(rewarded.reward, kl, mask, coef=coef)


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
