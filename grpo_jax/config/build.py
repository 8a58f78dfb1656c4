"""A run built from its configuration: every mistake a user can make shows here, before anything is compiled."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import optax

from grpo_jax.config.model import build_mesh, build_model
from grpo_jax.config.objective import build_objective
from grpo_jax.config.schema import Config
from grpo_jax.core import Objective, sft
from grpo_jax.core.advantage.shape_check import check_advantage
from grpo_jax.core.naming import show
from grpo_jax.core.slots import asks
from grpo_jax.data import Dataset, Tokenizer, encode_completions
from grpo_jax.data.limit import within_limit
from grpo_jax.data.source import Source, Split, find_source
from grpo_jax.errors import ConfigError, problem
from grpo_jax.learn.learner import Learner
from grpo_jax.learn.optimizer import critic_matrices, make_optimizer, make_schedule, policy_matrices
from grpo_jax.models.weights.source import ModelSource
from grpo_jax.rewards import Reward, resolve
from grpo_jax.run.run import Run


def build_run(config: Config, *, rewards: Sequence[Callable[..., Any]] | None = None) -> Run:
    """Returns the run that a configuration describes.

    Args:
      config: from `load`.
      rewards: reward functions in place of the configured ones, each with weight 1.

    Raises:
      ConfigError: a name that does not exist, or a contradiction between fields.
      ValueError: data that does not fit: a missing file or column, a prompt beyond its limit, a character that the
        tokenizer lacks, fewer devices than the mesh asks for.
    """
    objective = build_objective(config.objective)
    _check_advantage(config, objective)
    source = find_source(config.data.source)
    parts = source.read(config.data, config.seed)  # before a model is fetched
    model = build_model(config)
    # What null stands for may change; what a checkpoint was computed in does not.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=model.shape.dtype))
    tokenizer = model.tokenizer
    (train_data, test_data), skipped = _fitting(config, parts, tokenizer)
    schedule = _schedule(config, config.optimizer.learning_rate)
    matrices = policy_matrices(model.shape, model.lora)
    learner = Learner(
        model=model.shape,
        objective=objective,
        optimizer=make_optimizer(config.optimizer, schedule, matrices=matrices),
        critic_optimizer=_critic_optimizer(config, objective, model.shape),
        lora=model.lora,
        updates=config.train,
    )
    return Run(
        settings=config,
        mesh=build_mesh(config),
        model_source=model.source,
        learner=learner,
        warmup_learner=_warmup_learner(config, learner),
        demonstrate=_demonstrations(config, source, train_data, tokenizer),
        schedule=schedule,
        tokenizer=tokenizer,
        train_data=train_data,
        test_data=test_data,
        rewards=_rewards(config, source) if rewards is None else tuple(Reward(function) for function in rewards),
        notes=tuple(note for note in (tokenizer.note, _beyond(config, model.source), skipped) if note),
    )


def _check_advantage(config: Config, objective: Objective) -> None:
    """Raises ConfigError unless the advantage can be computed from a group of the configured size."""
    advantage, group = objective.advantage, config.sampling.group
    if advantage is None:
        raise ConfigError(
            [problem("objective", config.objective, "one with an advantage", "choose grpo; warmup.steps is supervised")]
        )
    if group < 2 and not {"value", "token_reward", "greedy_reward"} & set(asks(advantage)):
        expected = f"at least 2, because {show(advantage)} compares the completions of a prompt"
        raise ConfigError([problem("sampling.group", group, expected, "raise it")])
    try:
        check_advantage(advantage, group)
    except (TypeError, ValueError) as error:
        raise ConfigError([f"objective.advantage: {show(advantage)} with sampling.group={group}: {error}"]) from error


def _critic_optimizer(config: Config, objective: Objective, model: Any) -> optax.GradientTransformation | None:
    if not objective.needs_critic:
        return None
    rate = config.optimizer.critic_learning_rate or config.optimizer.learning_rate
    return make_optimizer(config.optimizer, _schedule(config, rate), matrices=critic_matrices(model))


def _schedule(config: Config, learning_rate: float) -> optax.Schedule:
    return make_schedule(
        learning_rate=learning_rate,
        warmup_steps=config.optimizer.warmup_steps,
        schedule=config.optimizer.schedule,
        updates=config.train.all_updates,
    )


def _fitting(config: Config, parts: Split, tokenizer: Tokenizer) -> tuple[list[Dataset | None], str]:
    """Returns the data whose prompts fit, and a remark about those that do not."""
    length, kept, notes = config.data.prompt_length, [], []
    for name, part in zip(("training", "held-out"), parts, strict=True):
        if part is None:
            kept.append(None)
            continue
        within, skipped = within_limit(part, tokenizer, length=length, too_long=config.data.too_long)
        kept.append(within)
        if skipped:
            notes.append(f"{skipped} of {len(part)} {name} prompts have more than {length} tokens and are left out")
    return kept, "; ".join(notes)


def _beyond(config: Config, source: ModelSource | None) -> str:
    """Returns a remark where texts may become longer than those that the model has seen."""
    longest = config.data.prompt_length + config.sampling.max_tokens
    seen = source.raw.get("max_position_embeddings", longest) if source else longest
    if longest <= seen:
        return ""
    return (
        f"data.prompt_length + sampling.max_tokens is {longest}, but {source.directory / 'config.json'} has "
        f"max_position_embeddings {seen}: the model may not know what to do beyond"
    )


def _warmup_learner(config: Config, learner: Learner) -> Learner | None:
    warmup, model = config.warmup, learner.model
    if warmup.steps == 0:
        return None
    schedule = make_schedule(
        learning_rate=warmup.learning_rate,
        warmup_steps=max(warmup.steps // 10, 1),
        schedule="cosine",
        updates=warmup.steps,
    )
    optimizer = make_optimizer(config.optimizer, schedule, matrices=policy_matrices(model))
    return Learner(model=dataclasses.replace(model, temperature=1.0), objective=sft(), optimizer=optimizer)


def _demonstrations(
    config: Config, source: Source, data: Dataset, tokenizer: Tokenizer
) -> Callable[[Sequence[int], Sequence[int]], list[str]]:
    """Returns the demonstrations of rows of the data, all of which fit if there is a warm-up."""

    def demonstrate(rows: Sequence[int], seed: Sequence[int]) -> list[str]:
        return source.demonstrate(data, rows, seed=seed, wrong=config.warmup.wrong)

    if config.warmup.steps:
        # Every demonstration must fit; better to hear of it now than after the first hours.
        try:
            texts = demonstrate(range(len(data)), (config.seed, 0))
        except ValueError as error:
            fix = "set warmup.steps=0, or give the data demonstrations"
            raise ConfigError([problem("warmup.steps", config.warmup.steps, f"0, because {error}", fix)]) from error
        encode_completions(texts, tokenizer, length=config.sampling.max_tokens)
    return demonstrate


def _rewards(config: Config, source: Source) -> tuple[Reward, ...]:
    if not config.rewards:
        return tuple(Reward(function, name=name) for name, function in source.rewards.items())
    return tuple(Reward(resolve(r.function), weight=r.weight, name=r.function) for r in config.rewards)
