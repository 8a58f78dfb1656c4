"""A run built from its configuration: every mistake a user can make shows here, before anything is compiled."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpo_jax.config.error import ConfigError, problem
from grpo_jax.config.load import to_dict
from grpo_jax.config.model import build_model
from grpo_jax.config.objective import build_objective
from grpo_jax.config.schema import Config
from grpo_jax.core import Objective, sft
from grpo_jax.core.advantage.trial import check_advantage
from grpo_jax.core.naming import show
from grpo_jax.core.slots import asks
from grpo_jax.data import Dataset, Tokenizer, arithmetic, encode_completions, read_jsonl
from grpo_jax.data.limit import within_limit
from grpo_jax.mesh import make_mesh
from grpo_jax.models.weights import Source
from grpo_jax.rewards import Reward, resolve
from grpo_jax.rollout import Sampler
from grpo_jax.train.learner import Learner
from grpo_jax.train.optimizer import make_optimizer, make_schedule
from grpo_jax.train.run import Evaluation, Rolling, Run, WarmUp


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
    parts = _data(config)  # before a model is fetched
    model = build_model(config)
    # What null stands for may change; what a checkpoint was computed in does not.
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype=model.shape.dtype))
    tokenizer = model.tokenizer
    (train_data, test_data), skipped = _fitting(config, parts, tokenizer)
    schedule = _schedule(config, config.optimizer.learning_rate)
    learner = Learner(
        model=model.shape,
        objective=objective,
        optimizer=_optimizer(config, schedule),
        lora=model.lora,
        critic_optimizer=_critic_optimizer(config, objective),
        temperature=config.sampling.temperature,
        logprob_chunk=config.model.logprob_chunk,
        minibatches=config.train.minibatches,
        epochs=config.train.epochs,
        micro_prompts=config.train.micro_prompts,
        overlong_buffer=config.train.overlong_buffer,
        overlong_penalty=config.train.overlong_penalty,
        mask_truncated=config.train.mask_truncated,
    )
    return Run(
        seed=config.seed,
        out=Path(config.out),
        resume=config.resume,
        description=to_dict(config),
        mesh=make_mesh(**to_dict(config)["mesh"]),
        source=model.source,
        learner=learner,
        schedule=schedule,
        warm_up=_warm_up(config, learner, train_data, tokenizer),
        tokenizer=tokenizer,
        train_data=train_data,
        test_data=test_data,
        prompt_length=config.data.prompt_length,
        rolling=Rolling(
            group=config.sampling.group,
            max_tokens=config.sampling.max_tokens,
            check_every=config.sampling.check_every,
        ),
        rewards=_rewards(config) if rewards is None else tuple(Reward(function) for function in rewards),
        reward_workers=config.reward_workers,
        reward_deadline=config.reward_deadline,
        steps=config.train.steps,
        prompts=config.train.prompts,
        reference_every=config.train.reference_every,
        reference_mix=config.train.reference_mix,
        dynamic_rounds=config.train.dynamic_rounds,
        evaluation=_evaluation(config),
        checkpoint_every=config.checkpoint.every,
        keep=config.checkpoint.keep,
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


def _critic_optimizer(config: Config, objective: Objective) -> Any:
    rate = config.optimizer.critic_learning_rate
    if not objective.needs_critic or rate is None:
        return None
    return _optimizer(config, _schedule(config, rate))


def _schedule(config: Config, learning_rate: float) -> Any:
    optimizer = config.optimizer
    return make_schedule(
        learning_rate=learning_rate,
        warmup_steps=optimizer.warmup_steps,
        schedule=optimizer.schedule,
        updates=config.train.steps * config.train.epochs * config.train.minibatches,
    )


def _evaluation(config: Config) -> Evaluation:
    sampler = Sampler(
        temperature=config.sampling.temperature,
        top_k=config.eval.top_k,
        top_p=config.eval.top_p,
        min_p=config.eval.min_p,
    )
    return Evaluation(
        every=config.eval.every,
        samples=config.eval.samples,
        sampler=sampler,
        answer_after=config.eval.answer_after,
    )


def _data(config: Config) -> tuple[Dataset, Dataset | None]:
    data = config.data
    if data.source == "arithmetic":
        return arithmetic.make_split(
            config.seed, train=data.train_size, test=data.test_size, operations=data.operations, digits=data.digits
        )
    missing = [file for file in (data.source, data.test) if file is not None and not Path(file).is_file()]
    if missing and data.url is not None:
        fetch = "".join(
            f"\n  curl -fL --create-dirs -o {shlex.quote(file)} {shlex.quote(f'{data.url}/{Path(file).name}')}"
            for file in missing
        )
        raise FileNotFoundError(
            f"there is no dataset file {' and no '.join(missing)}; to fetch what is missing:{fetch}"
        )
    train = _first(read_jsonl(data.source, prompt=data.prompt), data.train_size)
    return train, None if data.test is None else _first(read_jsonl(data.test, prompt=data.prompt), data.test_size)


def _first(data: Dataset, size: int | None) -> Dataset:
    return data if size is None else Dataset(data.rows[:size])


def _fitting(
    config: Config, parts: tuple[Dataset, Dataset | None], tokenizer: Tokenizer
) -> tuple[list[Dataset | None], str]:
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


def _beyond(config: Config, source: Source | None) -> str:
    """Returns a remark where texts may become longer than those that the model has seen."""
    longest = config.data.prompt_length + config.sampling.max_tokens
    seen = source.raw.get("max_position_embeddings", longest) if source else longest
    if longest <= seen:
        return ""
    return (
        f"data.prompt_length + sampling.max_tokens is {longest}, but {source.directory / 'config.json'} has "
        f"max_position_embeddings {seen}: the model may not know what to do beyond"
    )


def _optimizer(config: Config, schedule: Any) -> Any:
    optimizer = config.optimizer
    return make_optimizer(
        schedule,
        b1=optimizer.b1,
        b2=optimizer.b2,
        eps=optimizer.eps,
        weight_decay=optimizer.weight_decay,
        moment_dtype=optimizer.moment_dtype,
        max_grad_norm=optimizer.max_grad_norm,
    )


def _warm_up(config: Config, learner: Learner, data: Dataset, tokenizer: Tokenizer) -> WarmUp | None:
    warm = config.warmup
    if warm.steps == 0:
        return None
    if config.data.source != "arithmetic" and "completion" not in data.columns([0]):
        raise ConfigError(
            [
                problem(
                    "warmup.steps",
                    warm.steps,
                    f"0, because {config.data.source} has no column 'completion' to imitate",
                    "add the column, or set warmup.steps=0",
                )
            ]
        )

    def demonstrate(rows: Sequence[int], seed: Sequence[int]) -> list[str]:
        if config.data.source == "arithmetic":
            return arithmetic.demonstrations(data.prompts(rows), seed=seed, wrong=warm.wrong)
        return data.columns(rows)["completion"]

    # Every demonstration must fit; better to hear of it now than after the first hours.
    encode_completions(demonstrate(range(len(data)), (config.seed, 0)), tokenizer, length=config.sampling.max_tokens)
    schedule = make_schedule(
        learning_rate=warm.learning_rate, warmup_steps=max(warm.steps // 10, 1), schedule="cosine", updates=warm.steps
    )
    return WarmUp(
        steps=warm.steps,
        batch=warm.batch,
        learner=Learner(
            model=learner.model,
            objective=sft(),
            optimizer=_optimizer(config, schedule),
            logprob_chunk=learner.logprob_chunk,
        ),
        demonstrate=demonstrate,
    )


def _rewards(config: Config) -> tuple[Reward, ...]:
    return tuple(Reward(resolve(r.function), weight=r.weight, name=r.function) for r in config.rewards)
