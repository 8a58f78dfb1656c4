"""GRPO on one page: a decoder that is made from nothing learns to add, with names that `grpo_jax` exports.

What it does: imitates worked sums of which most forget to carry, then draws a group of answers for each problem,
rewards the right ones, compares each answer with its group, and makes one clipped policy-gradient update with a KL
term, thirty times. What it leaves out, because `grpo-jax train` has it: evaluation, checkpoints, several minibatches
per rollout, meshes, models that exist (`load_model` returns one in one call).

    python experiments/one_page/train.py        # about a minute on two CPU cores
"""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax

from grpo_jax import (
    CharTokenizer,
    Dataset,
    DecoderConfig,
    Grades,
    Learner,
    PromptBatch,
    TokenBatch,
    batch_indices,
    encode_completions,
    encode_prompts,
    grade,
    grpo,
    init,
    init_state,
    publish,
    sample,
    sample_keys,
    score,
    sft,
    update,
)
from grpo_jax.data.arithmetic import ALPHABET, demonstrations, make_split

PROMPTS, GROUP, LENGTH = 32, 8, 24
TOKENIZER = CharTokenizer(ALPHABET)
SHAPE = {"hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 12, "mlp": 128}
MODEL = DecoderConfig(vocab=TOKENIZER.vocab_size, **SHAPE, qk_norm=True, rope_theta=100.0)

# Every verb is a pure function; what is static in it (the model, the learner) hashes by value.
SAMPLE = jax.jit(sample, static_argnums=0, static_argnames=("max_tokens", "eos_ids"))
PUBLISH, SCORE, GRADE, UPDATE = (jax.jit(verb, static_argnums=0) for verb in (publish, score, grade, update))


def main(*, imitation: int = 400, steps: int = 30) -> list[float]:
    """Returns the mean reward of every step."""
    data, _ = make_split(0, train=10_000, test=0, operations=1, digits=2)
    params = imitate(init(MODEL, jax.random.key(0)), data, imitation)
    return reinforce(params, data, steps)


def imitate(params: dict, data: Dataset, steps: int) -> dict:
    """Returns the parameters after supervised updates: a group of one, with advantage 1."""
    learner = Learner(model=MODEL, objective=sft(), optimizer=optax.adam(5e-3))
    state = init_state(learner, params)
    for step in range(steps):
        prompts = data.prompts(batch_indices(0, step * 64, size=len(data), count=64))
        texts = demonstrations(prompts, seed=step, wrong=0.8)
        tokens, mask = (x[:, None] for x in encode_completions(texts, TOKENIZER, length=LENGTH))
        advantage = np.ones(tokens.shape, np.float32)
        batch = TokenBatch(prompt=encoded(prompts), tokens=tokens, mask=mask, advantage=advantage)
        state, _ = UPDATE(learner, state, batch)
    return state.params


def reinforce(params: dict, data: Dataset, steps: int) -> list[float]:
    """Returns the mean reward of every step of GRPO."""
    objective = dataclasses.replace(grpo(), kl_coef=0.001)
    learner = Learner(model=MODEL, objective=objective, optimizer=optax.adam(1e-3))
    state, rewards = init_state(learner, params), []
    for step in range(steps):
        rows = batch_indices(1, step * PROMPTS, size=len(data), count=PROMPTS)
        prompt, answers = encoded(data.prompts(rows)), data.columns(rows)["answer"]

        keys = sample_keys(0, step, np.asarray(rows, np.int32), GROUP)
        published = PUBLISH(MODEL, state.params)
        rollout = SAMPLE(MODEL, published, prompt, keys, max_tokens=LENGTH, eos_ids=TOKENIZER.eos_ids)

        tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
        reward = np.zeros((PROMPTS, GROUP), np.float32)
        for p, g in np.ndindex(PROMPTS, GROUP):
            text = TOKENIZER.decode(tokens[p, g][mask[p, g]])
            reward[p, g] = text.rpartition(":")[2] == answers[p]

        grades = Grades(reward=reward, valid=np.ones(reward.shape, bool))
        batch = TokenBatch(
            prompt=prompt,
            tokens=rollout.tokens,
            mask=rollout.mask,
            advantage=GRADE(objective, grades, rollout.mask),
            ref_logp=SCORE(MODEL, state.reference, prompt, rollout.tokens).logp,
        )
        state, metrics = UPDATE(learner, state, batch)
        rewards.append(float(reward.mean()))
        shown = {name: float(metrics[name]) for name in ("kl", "entropy", "grad_norm")}
        print(f"{step + 1:>4}  reward {rewards[-1]:.3f}  " + "  ".join(f"{k} {v:.4f}" for k, v in shown.items()))
    return rewards


def encoded(prompts: list[str]) -> PromptBatch:
    tokens, mask = encode_prompts(prompts, TOKENIZER, length=8)
    return PromptBatch(tokens=tokens, mask=mask)


if __name__ == "__main__":
    main()
