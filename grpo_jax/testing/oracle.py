"""The mathematics once more, in float64 NumPy: slow loops written from the papers, to compare against.

Nothing here imports or imitates `grpo_jax.core`. Padding is skipped, never masked: a loop visits scored tokens only.
Rows of tokens are `[B, T]`, groups are `[G]`; callers loop over further axes.
"""

from __future__ import annotations

import math

import numpy as np


def group_advantage(reward, valid=None, *, ddof=1, eps=1e-6):
    """Returns (r - mean) / (std + eps) over the valid entries of one group (DeepSeekMath, arXiv:2402.03300, 4.1.2).

    Entries that are not valid or not finite get 0, and so does everything when fewer than two rewards differ.

    >>> group_advantage([1, 0, 0, 0]).round(6).tolist()
    [1.499997, -0.499999, -0.499999, -0.499999]
    """
    reward = np.asarray(reward, np.float64)
    valid = np.ones(reward.shape, bool) if valid is None else np.asarray(valid)
    counted = [i for i in range(len(reward)) if valid[i] and math.isfinite(reward[i])]
    advantage = np.zeros(len(reward))
    if len({reward[i] for i in counted}) < 2:
        return advantage
    mean = sum(reward[i] for i in counted) / len(counted)
    std = math.sqrt(sum((reward[i] - mean) ** 2 for i in counted) / (len(counted) - ddof))
    for i in counted:
        advantage[i] = (reward[i] - mean) / (std + eps)
    return advantage


def process_advantage(step_reward, step_end, step_valid, *, length, ddof=1, eps=1e-6):
    """Returns the advantage [G, T] of process supervision (DeepSeekMath, arXiv:2402.03300, 4.1.3) for one group.

    >>> process_advantage([[1.0], [0.0]], [[1], [0]], [[True], [True]], length=2, ddof=0, eps=0.0).tolist()
    [[1.0, 1.0], [-1.0, 0.0]]
    """
    step_reward, step_end, step_valid = map(np.asarray, (step_reward, step_end, step_valid))
    flat = group_advantage(step_reward.ravel(), step_valid.ravel(), ddof=ddof, eps=eps).reshape(step_reward.shape)
    advantage = np.zeros((len(step_reward), length))
    for g, t in np.ndindex(*advantage.shape):
        for k in range(step_reward.shape[1]):
            if step_valid[g, k] and step_end[g, k] >= t:
                advantage[g, t] += flat[g, k]
    return advantage


def log_softmax(logits):
    """Returns z - log sum exp z over the last axis.

    >>> log_softmax([0.0, 0.0]).round(4).tolist()
    [-0.6931, -0.6931]
    """
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def token_logprobs(hidden, head, targets, *, temperature=1.0):
    """Returns the log-probabilities of the targets, and those of the whole vocabulary.

    >>> token_logprobs(np.zeros((1, 2)), np.ones((2, 4)), np.array([3]))[0].round(4).tolist()
    [-1.3863]
    """
    hidden, head = np.asarray(hidden, np.float64), np.asarray(head, np.float64)
    logp_V = log_softmax(hidden @ head / temperature)
    logp = np.zeros(np.shape(targets))
    for index in np.ndindex(*logp.shape):
        logp[index] = logp_V[(*index, targets[index])]
    return logp, logp_V


def entropy(logp_V):
    """Returns -sum_v p_v log p_v over the last axis, with 0 log 0 = 0.

    >>> entropy(np.array([0.0, -np.inf])).tolist()
    0.0
    """
    p = np.exp(np.asarray(logp_V, np.float64))
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=-1) + 0.0


def kl_divergence(logp_V, ref_logp_V):
    """Returns sum_v p_v log(p_v / q_v) over the last axis, with 0 log 0 = 0.

    >>> round(float(kl_divergence(np.log([0.5, 0.5]), np.log([0.25, 0.75]))), 4)
    0.1438
    """
    p, q = np.exp(np.asarray(logp_V, np.float64)), np.exp(np.asarray(ref_logp_V, np.float64))
    return np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0) / np.where(p > 0, q, 1.0)), 0.0).sum(axis=-1)


def k1(logp, ref_logp):
    """Returns log(pi / pi_ref).

    >>> float(k1(-1.0, -1.5))
    0.5
    """
    return np.asarray(logp, np.float64) - np.asarray(ref_logp, np.float64)


def k2(logp, ref_logp):
    """Returns log(pi / pi_ref)^2 / 2.

    >>> float(k2(-1.0, -2.0))
    0.5
    """
    return k1(logp, ref_logp) ** 2 / 2


def k3(logp, ref_logp):
    """Returns pi_ref / pi - log(pi_ref / pi) - 1 (DeepSeekMath, arXiv:2402.03300, equation 4).

    >>> round(float(k3(math.log(0.5), math.log(1.0))), 4)
    0.3069
    """
    r = np.exp(np.asarray(ref_logp, np.float64) - np.asarray(logp, np.float64))
    return r - np.log(r) - 1


def ppo_clip(ratio, advantage, *, low, high, dual=None):
    """Returns the loss of one token, -min(r A, clip(r) A), with dual clip if given (arXiv:1912.09729, equation 5).

    >>> ppo_clip(1.5, 1.0, low=0.25, high=0.25), ppo_clip(4.0, -1.0, low=0.25, high=0.25, dual=3.0)
    (-1.25, 3.0)
    """
    kept = min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)
    if dual is not None and advantage < 0:
        kept = max(kept, dual * advantage)
    return -kept


def reward_with_kl(reward, kl, mask, *, coef):
    """Returns the reward of each token [B, T] with a KL penalty (InstructGPT, arXiv:2203.02155, 3.5).

    >>> reward_with_kl([1.0], [[0.5, 0.5]], [[True, True]], coef=0.5).tolist()
    [[-0.25, 0.75]]
    """
    out = np.zeros(np.shape(kl))
    for b in range(len(out)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            out[b, t] = -coef * kl[b][t] + (reward[b] if t == scored[-1] else 0.0)
    return out


def sequence_mean(x, mask):
    """Returns (sum of the means of the non-empty rows, their number).

    >>> sequence_mean([[1.0, 3.0], [4.0, 0.0]], [[True, True], [True, False]])
    (6.0, 2.0)
    """
    means = [float(np.mean([x[b][t] for t in np.flatnonzero(mask[b])])) for b in range(len(mask)) if np.any(mask[b])]
    return float(sum(means)), float(len(means))


def token_mean(x, mask):
    """Returns (sum over scored tokens, their number).

    >>> token_mean([[1.0, 3.0], [4.0, 0.0]], [[True, True], [True, False]])
    (8.0, 3.0)
    """
    scored = [float(x[b][t]) for b in range(len(mask)) for t in np.flatnonzero(mask[b])]
    return float(sum(scored)), float(len(scored))


def grpo_loss(
    logp, old_logp, ref_logp, mask, advantage, *, low, high, kl_coef, dual=None, whole_sequence=False, aggregate
):
    """Returns (total, weight) of the GRPO loss on rows [B, T] (DeepSeekMath, arXiv:2402.03300, equation 3).

    `whole_sequence` takes the ratio pi(o|q) / pi_old(o|q) of DeepSeek-R1 (arXiv:2501.12948, equation 1).

    >>> row = [[-1.0]]
    >>> grpo_loss(row, row, row, [[True]], [[2.0]], low=0.2, high=0.2, kl_coef=1.0, aggregate=token_mean)
    (-2.0, 1.0)
    """
    loss = np.zeros(np.shape(logp))
    for b in range(len(loss)):
        scored = np.flatnonzero(mask[b])
        for t in scored:
            compared = scored if whole_sequence else [t]
            ratio = math.exp(sum(float(logp[b][u]) - float(old_logp[b][u]) for u in compared))
            kl = float(k3(logp[b][t], ref_logp[b][t])) if kl_coef else 0.0
            loss[b, t] = ppo_clip(ratio, float(advantage[b][t]), low=low, high=high, dual=dual) + kl_coef * kl
    return aggregate(loss, mask)
