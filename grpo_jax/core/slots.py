"""The slots of an objective: what each component is called with, what it may ask for, and what it returns.

A component asks for more than its slot passes by name, with keyword-only parameters. A surrogate `(log_ratio, logp,
advantage)` that also wants the mask is `(log_ratio, logp, advantage, *, mask)`. Whoever calls it reads that from the
signature, so nothing is computed that no component asks for. A keyword-only parameter with a default is a
hyperparameter and is never filled in.

Each slot is a `Protocol`. The names that it offers are written once, above the class: `help(Surrogate)` lists them, and
an `Objective` refuses a component that asks for another. A trailing `*args: Any, **asked: Any` is how a Protocol says
that a component may have further parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from jaxtyping import Array, Bool, Float

from grpo_jax.core.naming import show
from grpo_jax.types import WeightedSum

Tokens = Float[Array, "*b T"]
Mask = Bool[Array, "*b T"]
Slot = TypeVar("Slot")


OFFERS: dict[str, dict[str, tuple[str, str, str]]] = {}
"""What each slot offers by name: (dtype, axes, meaning), where `...` are the leading axes, prompts or rows.

Slots are named as the fields of `Objective`; `surrogate.select` is the method of a surrogate.
"""


def offers(slot: str, **names: tuple[str, str, str]) -> Callable[[Slot], Slot]:
    """Returns a decorator that notes what a slot offers, and lists it in the docstring."""
    OFFERS[slot] = names

    def document(protocol: Slot) -> Slot:
        lines = [f"  {name}: {dtype} [{axes}], {meaning}." for name, (dtype, axes, meaning) in names.items()]
        text = inspect.cleandoc(protocol.__doc__ or "")
        protocol.__doc__ = "\n".join([text, "", "May ask for:", *(lines or ["  nothing more."])])
        return protocol

    return document


@offers(
    "advantage",
    mask=("bool", "... G T", "scored tokens, completions without a valid reward left out"),
    token_reward=("float32", "... G T", "the KL penalty of each token, and the reward on the last scored one"),
    value=("float32", "... G T", "what the critic expects before each token"),
    greedy_reward=("float32", "...", "reward of the prompt's greedy completion; NaN where none applies"),
    term_reward=("float32", "... G K", "each reward function's number; NaN where it does not apply"),
    term_weight=("float32", "K", "their weights in the sum"),
    step_reward=("float32", "... G K", "rewards of the steps of a completion"),
    step_end=("int32", "... G K", "index of the last token of each step"),
    step_valid=("bool", "... G K", "True where there is a step; elsewhere the other two may hold anything"),
)
class Advantage(Protocol):
    """Rewards to how much better than expected a completion, or a token, did.

    Computed once over the whole batch, before it is cut into minibatches. Statistics over the batch run over all axes.

    Args:
      reward: one number for each completion; NaN and infinite ones are treated as not valid.
      valid: True where the reward applies; elsewhere `reward` may hold anything.

    Returns:
      `[..., G]`, the same for every token of a completion, or `[..., G, T]`. Exactly 0 for a completion that is not
      valid, which takes part in no statistic, and outside the mask. Constants: the objective detaches them.

    Raises:
      TypeError: rewards are no floating-point numbers, or a mask is not boolean.
      ValueError: the shapes do not fit, or there is no axis G.
    """

    def __call__(
        self, reward: Float[Array, "*b G"], valid: Bool[Array, "*b G"], /, *args: Any, **asked: Any
    ) -> Float[Array, "..."]: ...


@offers("ratio")
class Ratio(Protocol):
    """The log-ratio of each token to that over which the policies are compared: the token's own, the completion's, ...

    Args:
      log_ratio: log(pi / pi_old) of each token; padding may hold anything.
      mask: True on scored tokens.

    Returns:
      The log of the importance ratio at each token, 0 outside the mask; a row without a scored token is 0.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.
    """

    def __call__(self, log_ratio: Tokens, mask: Mask, /, *args: Any, **asked: Any) -> Tokens: ...


@offers(
    "surrogate",
    mask=("bool", "... T", "scored tokens"),
    old_logp=("float32", "... T", "log-probabilities under the policy that sampled, a constant"),
    selected=("bool", "... T", "the tokens that the surrogate's own `select` picked"),
)
class Surrogate(Protocol):
    """The loss of a token, given its ratio and its advantage, and whether a bound cut it.

    All inputs are 0 outside the mask, and what is returned there is never read. A surrogate that treats some tokens
    specially, because of how they compare with the rest of the batch, has a method `select`: see `Select`.

    Args:
      log_ratio: log of the importance ratio, what `ratio` made of it.
      logp: log-probabilities under the policy that learns.
      advantage: of each token, detached.

    Returns:
      The loss of each token, and True where a bound replaced its ratio.

    Raises:
      TypeError: a mask is not boolean.
      ValueError: the shapes differ.
    """

    def __call__(
        self, log_ratio: Tokens, logp: Tokens, advantage: Tokens, /, *args: Any, **asked: Any
    ) -> tuple[Tokens, Mask]: ...


@offers(
    "surrogate.select",
    mask=("bool", "... T", "scored tokens"),
    old_logp=("float32", "... T", "log-probabilities under the policy that sampled; padding may hold anything"),
    advantage=("float32", "... T", "advantage of each token; padding may hold anything"),
    entropy=("float32", "... T", "entropy of the policy that sampled; padding may hold anything"),
    key=("key", "", "for random choices"),
)
class Select(Protocol):
    """A surrogate's choice among all tokens of a batch.

    It runs once on the whole batch, before it is cut into minibatches or micro-batches, so that the cut does not
    matter. All that it reads are keyword-only parameters.

    Returns:
      True on the tokens that it picked: what the surrogate asks for as `selected`.
    """

    def __call__(self, *args: Any, **asked: Any) -> Mask: ...


@offers(
    "correction",
    logp=("float32", "... T", "log-probabilities under the policy that learns"),
    sampler_logp=("float32", "... T", "log-probabilities under what the sampler drew from"),
    advantage=("float32", "... T", "advantage of each token"),
)
class Correction(Protocol):
    """What makes up for a sampler that is not quite the policy that the trainer computes.

    Inputs and results are constants: the objective detaches them.

    Args:
      log_gap: log(pi_old / mu) of each token, pi_old scored by the trainer, mu what the sampler drew from; padding
        may hold anything.
      mask: True on scored tokens.

    Returns:
      The weight of each token, which multiplies its surrogate, 0 outside the mask; and a part of the mask: what it
      leaves out is in no sum and in no denominator.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.
    """

    def __call__(self, log_gap: Tokens, mask: Mask, /, *args: Any, **asked: Any) -> tuple[Tokens, Mask]: ...


@offers(
    "kl",
    mask=("bool", "... T", "scored tokens"),
    log_ratio=("float32", "... T", "log(pi / pi_old) of each token, with its gradient"),
    importance_log_ratio=("float32", "... T", "what `ratio` makes of it and the surrogate sees, with its gradient"),
    divergence=("float32", "... T", "its attribute `divergence`, summed over the vocabulary, with its gradient"),
)
class Kl(Protocol):
    """Distance of the policy from a reference, at each token.

    The tokens are drawn from pi, and references are constants: the objective detaches them. In the reward the policy is
    the one that sampled, so both log-ratios are 0 there.

    A distance that the drawn tokens do not determine asks for `divergence`. Its attribute of that name is the function
    of the whole vocabulary, `(logp[..., V], ref_logp[..., V]) -> [...]`, which `token_logprobs` evaluates; it gets no
    `ref_logp` (`FullVocabulary`).

    Args:
      logp: log-probabilities under the policy.
      ref_logp: the same under the reference; None for one that asks for `divergence`.

    Raises:
      ValueError: the shapes differ.
    """

    def __call__(self, logp: Tokens, ref_logp: Any, /, *args: Any, **asked: Any) -> Tokens: ...


@offers("aggregate")
class Aggregate(Protocol):
    """The terms of tokens to one number, with the division left for the end.

    Args:
      x: a term of each token; padding may hold anything.
      mask: True on scored tokens. All axes but the last are rows; one without a scored token is empty.

    Raises:
      TypeError: `mask` is not boolean.
      ValueError: the shapes differ.
    """

    def __call__(self, x: Tokens, mask: Mask, /, *args: Any, **asked: Any) -> WeightedSum: ...


@offers("value")
class Value(Protocol):
    """The loss of a critic at each token.

    All inputs are 0 outside the mask, and what is returned there is never read.

    Args:
      value: what the critic says now.
      old_value: what it said when the completions were sampled, a constant.
      returns: what it should have said, a constant.

    Returns:
      The loss of each token, and True where a bound holds it.
    """

    def __call__(
        self, value: Tokens, old_value: Tokens, returns: Tokens, /, *args: Any, **asked: Any
    ) -> tuple[Tokens, Mask]: ...


def asks(component: Callable[..., Any] | None) -> tuple[str, ...]:
    """Returns the names that a component asks for; nothing for None.

    >>> def surrogate(log_ratio, logp, advantage, *, mask, eps=0.2): ...
    >>> asks(surrogate)
    ('mask',)
    """
    if component is None:
        return ()
    return tuple(
        name
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty
    )


def require_offered(slot: str, component: Callable[..., Any] | None) -> None:
    """Raises ValueError if a component cannot be called, or asks for a name that its slot does not offer.

    >>> def strange(reward, valid, *, length): ...
    >>> require_offered("advantage", strange)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: advantage=strange asks for length; this slot offers mask, token_reward, value, greedy_reward, ...
    """
    if component is not None and not callable(component):
        raise ValueError(f"{slot}={show(component)} cannot be called; a component is a function or has a __call__")
    unknown = [name for name in asks(component) if name not in OFFERS[slot]]
    if unknown:
        raise ValueError(
            f"{slot}={show(component)} asks for {', '.join(unknown)}; this slot offers "
            f"{', '.join(OFFERS[slot]) or 'nothing beyond its arguments'}"
        )


def fill(slot: str, component: Callable[..., Any], available: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a component asks for.

    Raises:
      ValueError: one of them is not available here, or None.

    >>> def kl(logp, ref_logp, *, log_ratio): ...
    >>> fill("kl", kl, {"log_ratio": 0.5, "mask": None})
    {'log_ratio': 0.5}
    >>> fill("kl", kl, {"mask": True, "log_ratio": None})
    Traceback (most recent call last):
    ValueError: kl=kl asks for log_ratio, which is not given here; there is mask
    """
    asked = asks(component)
    given = [name for name, value in available.items() if value is not None]
    missing = [name for name in asked if name not in given]
    if missing:
        raise ValueError(
            f"{slot}={show(component)} asks for {', '.join(missing)}, which is not given here; "
            f"there is {', '.join(given) or 'nothing'}"
        )
    return {name: available[name] for name in asked}
