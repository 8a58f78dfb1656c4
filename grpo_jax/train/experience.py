"""From rewards to a batch that an update can read: advantages, and only the scores that the objective uses."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import Objective, TokenLogprobs, token_logprobs
from grpo_jax.core.returns import reward_with_kl
from grpo_jax.models import head, hidden_states
from grpo_jax.models.decoder import Params
from grpo_jax.train.learner import Learner
from grpo_jax.train.microbatch import join, split
from grpo_jax.train.state import TrainState
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


def experience(
    learner: Learner, state: TrainState, prompt: PromptBatch, rollout: Rollout, rewarded: Rewarded
) -> TokenBatch:
    """Returns the batch of an update.

    Without a KL term nothing of the reference is computed; with one update per rollout nothing is computed for the
    old log-probs, because the policy that samples is the policy that learns.
    """
    objective, tokens = learner.objective, rollout.tokens
    mask = rollout.mask & rewarded.valid[..., None]
    old_logp = ref_logp = ref_hidden = None
    if learner.updates > 1:
        old_logp = score(learner, state.params, prompt, tokens).logp
    if objective.kl_coef and objective.full_vocabulary:
        ref_hidden = _map(learner, lambda part: hidden_states(learner.model, state.reference, *part), (prompt, tokens))
    elif objective.needs_reference and not objective.full_vocabulary:
        ref_logp = score(learner, state.reference, prompt, tokens).logp
    rewarded = _penalised(learner, state, prompt, rollout, rewarded, mask, ref_logp)
    return TokenBatch(
        prompt=prompt,
        tokens=tokens,
        mask=mask,
        advantage=advantages(objective, rewarded, tokens.shape[-1]),
        old_logp=old_logp,
        sampler_logp=rollout.logp,
        ref_logp=ref_logp if objective.kl_coef else None,
        ref_hidden=ref_hidden,
    )


def advantages(objective: Objective, rewarded: Rewarded, length: int) -> Float[Array, "P G T"]:
    """Returns the advantage of every token.

    Raises:
      ValueError: process supervision without step rewards.
    """
    if objective.process:
        if rewarded.step_reward is None:
            raise ValueError(
                f"advantage: {objective.advantage} needs rewards of steps, and no reward function returns lists of "
                "(end, value)"
            )
        return objective.advantage(
            rewarded.step_reward, rewarded.step_end, rewarded.step_valid & rewarded.valid[..., None], length=length
        )
    advantage = objective.advantage(rewarded.reward, rewarded.valid)
    return jnp.broadcast_to(advantage[..., None], (*advantage.shape, length))


def score(
    learner: Learner, params: Params, prompt: PromptBatch, tokens: jax.Array, reference: Params | None = None
) -> TokenLogprobs:
    """Returns the log-probs of completions, with the full-vocabulary divergence from `reference` if it is given."""

    def part(batch: tuple[PromptBatch, jax.Array]) -> TokenLogprobs:
        hidden = hidden_states(learner.model, params, *batch)
        against = None
        if reference is not None:
            against = (hidden_states(learner.model, reference, *batch), head(reference))
        return token_logprobs(
            hidden,
            head(params),
            batch[1],
            temperature=learner.temperature,
            chunk=learner.logprob_chunk,
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


def _penalised(
    learner: Learner,
    state: TrainState,
    prompt: PromptBatch,
    rollout: Rollout,
    rewarded: Rewarded,
    mask: jax.Array,
    ref_logp: jax.Array | None,
) -> Rewarded:
    """Returns the rewards less the KL of the policy that sampled from the reference, summed over tokens."""
    objective = learner.objective
    if not objective.reward_kl_coef:
        return rewarded
    if objective.full_vocabulary:
        kl = score(learner, state.params, prompt, rollout.tokens, state.reference).divergence
    else:
        kl = objective.kl(rollout.logp, ref_logp)
    token_reward = reward_with_kl(rewarded.reward, kl, mask, coef=objective.reward_kl_coef)
    return dataclasses.replace(rewarded, reward=token_reward.sum(-1, where=mask))
