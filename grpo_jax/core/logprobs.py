"""Log-probabilities of given tokens from hidden states, without ever holding `[..., T, V]`, and logits, which do.

A scan over pieces of the axis T computes the logits of one piece at a time. Its derivative is written by hand: the
log-sum-exp of each token is kept, so the backward pass exponentiates once per logit instead of repeating the
softmax, and the head's gradient is summed in float32 in one buffer.

Axes: T tokens, D model width, V vocabulary, N pieces of the axis T, C tokens in a piece.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.checks import require_axes, require_integers
from grpo_jax.core.kl.full_vocabulary import Divergence


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenLogprobs:
    """What a pass over the vocabulary says about each token."""

    logp: Float[Array, "*b T"]
    """log pi(target), at the temperature that was given."""
    entropy: Float[Array, "*b T"] | None = None
    """Entropy of pi at that token; None unless asked for."""
    divergence: Float[Array, "*b T"] | None = None
    """Divergence of pi from the reference over the whole vocabulary; None unless asked for."""


def token_logprobs(
    hidden: Float[Array, "*b T D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "*b T"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    chunk: int = 16,
    entropy: bool = False,
    reference: tuple[Float[Array, "*b T R"], Float[Array, "R V"]] | None = None,
    divergence: Divergence | None = None,
    soft_cap: float | None = None,
) -> TokenLogprobs:
    """Returns log pi(target) of each token, and on request its entropy and its divergence from a reference.

        log pi(v) = z_v - log sum_u exp z_u,     z = hidden @ head / temperature, in float32
        entropy   = -sum_v pi(v) log pi(v)

    With a `soft_cap` c, `c tanh(hidden @ head / c)` stands in place of `hidden @ head`.

    At most `chunk` tokens of each row have logits at the same time, forward and backward. The leading axes stay as
    they are, so their sharding survives.

    Gradient: to `hidden` and `head`, in reverse mode. `reference`, `targets` and `temperature` are constants. The
    head's gradient sums over all rows, so `hidden` has to be finite at padding too; its cotangents there are 0
    once the loss masks its result.

    Args:
      hidden: last hidden states; position t is the one that predicts `targets[..., t]`.
      head: output projection. Where it and `hidden` are bfloat16, so are the operands of every product (never its
        sums), as in the layers below.
      targets: token ids. One that is not in [0, V) has log-probability NaN, which a mask removes at padding.
      temperature: divides the logits: that of the sampler, so that pi is what the tokens were drawn from.
      chunk: upper bound on the tokens of a row that are projected together.
      entropy: whether to compute the entropy.
      reference: hidden states and head of the reference policy, for `divergence`.
      divergence: `(logp_V, ref_logp_V) -> [...]`, such as `kl_divergence`.
      soft_cap: the model's bound on its logits, before the temperature; the reference has the same.

    Raises:
      TypeError: `targets` holds no integers.
      ValueError: shapes do not fit, `temperature`, `chunk` or `soft_cap` is not positive, or only one of `reference`
        and `divergence` is given.

    >>> scores = token_logprobs(jnp.zeros((1, 3, 2)), jnp.ones((2, 4)), jnp.array([[0, 1, 2]]), entropy=True)
    >>> jnp.exp(scores.logp), jnp.exp(scores.entropy)
    (Array([[0.25, 0.25, 0.25]], dtype=float32), Array([[4., 4., 4.]], dtype=float32))
    """
    _check_inputs(hidden, head, targets, chunk, reference, divergence)
    _check_scale(temperature, soft_cap)
    length = jnp.shape(targets)[-1]
    pieces = max(1, -(-length // chunk))
    split = partial(_split, axis=jnp.ndim(targets) - 1, pieces=pieces)
    # A negative index would count from the end of the vocabulary; V itself is out of range and yields NaN.
    targets = split(jnp.where(targets < 0, jnp.shape(head)[-1], targets))
    ref = None if reference is None else (split(reference[0]), reference[1])
    scores = _scores(entropy, divergence, soft_cap, split(hidden), head, targets, ref, jnp.asarray(temperature))
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)[..., :length], scores)


Reference = tuple[Float[Array, "N *b C R"], Float[Array, "R V"]] | None


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _scores(
    entropy: bool,
    divergence: Divergence | None,
    soft_cap: float | None,
    hidden: Float[Array, "N *b C D"],
    head: Float[Array, "D V"],
    targets: Int[Array, "N *b C"],
    reference: Reference,
    temperature: Float[Array, ""],
) -> TokenLogprobs:
    """Returns the scores of every piece, one after the other."""
    return _forward(entropy, divergence, soft_cap, hidden, head, targets, reference, temperature)[0]


def _forward(
    entropy: bool,
    divergence: Divergence | None,
    soft_cap: float | None,
    hidden: Array,
    head: Array,
    targets: Array,
    reference: Reference,
    temperature: Array,
) -> tuple[TokenLogprobs, Any]:
    def piece(_: None, xs: Any) -> Any:
        hidden_CD, targets_C, ref_hidden_CR = xs
        logits_V = token_logits(hidden_CD, head, temperature=temperature, soft_cap=soft_cap)
        norm_C = jax.nn.logsumexp(logits_V, axis=-1)
        logp_V = logits_V - norm_C[..., None]
        entropy_C = divergence_C = None
        if entropy:
            p_V = jnp.exp(logp_V)
            entropy_C = -jnp.sum(p_V * jnp.where(p_V > 0, logp_V, 0.0), axis=-1)
        if divergence is not None and reference is not None:
            divergence_C = divergence(logp_V, _ref_logp(ref_hidden_CR, reference, temperature, soft_cap))
        logp_C = jnp.take_along_axis(logits_V, targets_C[..., None], axis=-1)[..., 0] - norm_C
        return None, (TokenLogprobs(logp=logp_C, entropy=entropy_C, divergence=divergence_C), norm_C)

    ref_hidden = None if reference is None else reference[0]
    _, (scores, norm) = jax.lax.scan(piece, None, (hidden, targets, ref_hidden))
    return scores, (hidden, head, targets, reference, temperature, norm, scores.entropy)


def _backward(
    entropy: bool, divergence: Divergence | None, soft_cap: float | None, residuals: Any, cotangents: TokenLogprobs
) -> tuple[Array | None, ...]:
    """Returns the cotangents of hidden and head, with p = softmax(z), g = dL/dlogp, h = dL/dH and the entropy H.

    dL/dz = g (onehot - p) - h p (log p + H) + c - p sum(c),      c = dL/d(log p) of the divergence
    dL/dhidden = dL/dz head^T / temperature,      dL/dhead = hidden^T dL/dz / temperature

    With a soft cap both hold one more factor, the slope 1 - tanh^2 = 1 - (z temperature / cap)^2.
    """
    hidden, head, targets, reference, temperature, norm, entropies = residuals
    operand = jnp.result_type(hidden, head)

    def piece(d_head: Array, xs: Any) -> tuple[Array, Array]:
        hidden_CD, targets_C, ref_hidden_CR, norm_C, entropy_C, g = xs
        logits_V = token_logits(hidden_CD, head, temperature=temperature, soft_cap=soft_cap)
        logp_V = logits_V - norm_C[..., None]
        p_V = jnp.exp(logp_V)
        # A comparison fuses into this line; a scatter of one element per row would write the piece once more.
        hit_V = jnp.arange(jnp.shape(head)[-1]) == targets_C[..., None]
        d_logits_V = g.logp[..., None] * (hit_V - p_V)
        if entropy:
            d_logits_V -= p_V * (g.entropy[..., None] * (jnp.where(p_V > 0, logp_V, 0.0) + entropy_C[..., None]))
        if divergence is not None and reference is not None:
            ref_logp_V = _ref_logp(ref_hidden_CR, reference, temperature, soft_cap)
            _, pull = jax.vjp(lambda x_V: divergence(x_V, ref_logp_V), logp_V)
            (c_V,) = pull(g.divergence)
            d_logits_V += c_V - p_V * jnp.sum(c_V, axis=-1, keepdims=True)
        if soft_cap is not None:
            d_logits_V *= 1 - jnp.square(logits_V * (temperature / soft_cap))
        d_logits_V = (d_logits_V / temperature).astype(operand)
        rows = list(range(d_logits_V.ndim - 1))
        d_head += jnp.tensordot(hidden_CD, d_logits_V, (rows, rows), preferred_element_type=d_head.dtype)
        return d_head, jnp.matmul(d_logits_V, head.T, preferred_element_type=norm.dtype).astype(hidden.dtype)

    ref_hidden = None if reference is None else reference[0]
    zeros = jnp.zeros(jnp.shape(head), norm.dtype)
    d_head, d_hidden = jax.lax.scan(piece, zeros, (hidden, targets, ref_hidden, norm, entropies, cotangents))
    return d_hidden, d_head.astype(head.dtype), None, None, None


_scores.defvjp(_forward, _backward)


def token_logits(
    hidden: Float[Array, "*b D"],
    head: Float[Array, "D V"],
    *,
    temperature: float | Float[Array, ""] = 1.0,
    soft_cap: float | None = None,
) -> Float[Array, "*b V"]:
    """Returns the logits of each position over the whole vocabulary, in float32 or wider.

        z = hidden @ head / temperature,      with a `soft_cap` c: c tanh(hidden @ head / c) / temperature

    This holds `[..., T, V]` at once, which `token_logprobs` is there to avoid: for one position, a small vocabulary, or
    to look at.

    Gradient: that of the formula.

    Args:
      hidden: last hidden states; a position's logits are those of the token that follows it.
      head: output projection. Where both are bfloat16, so are the operands of the product, never its sums.
      temperature: divides the logits.
      soft_cap: the model's bound on its logits, before the temperature.

    Raises:
      ValueError: shapes do not fit, or `temperature` or `soft_cap` is not positive.

    >>> token_logits(jnp.array([[1.0, 2.0]]), jnp.eye(2), temperature=0.5)
    Array([[2., 4.]], dtype=float32)
    """
    require_axes("hidden", hidden, "D")
    _check_head("hidden", hidden, "head", head)
    _check_scale(temperature, soft_cap)
    wide = jnp.promote_types(jnp.result_type(hidden, head), jnp.float32)
    logits = jnp.matmul(hidden, head, preferred_element_type=wide)
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    return logits / temperature


def _ref_logp(
    ref_hidden: Array, reference: tuple[Array, Array], temperature: Array, soft_cap: float | None
) -> Float[Array, "*b V"]:
    return jax.nn.log_softmax(
        token_logits(ref_hidden, reference[1], temperature=temperature, soft_cap=soft_cap), axis=-1
    )


def _split(x: Array, *, axis: int, pieces: int) -> Array:
    """Returns `x` with `axis` padded by zeros and cut into `pieces`, which come first: [N, ..., C, ...]."""
    shape = jnp.shape(x)
    size = -(-shape[axis] // pieces)
    padding = [(0, 0)] * len(shape)
    padding[axis] = (0, pieces * size - shape[axis])
    return jnp.moveaxis(jnp.pad(x, padding).reshape(*shape[:axis], pieces, size, *shape[axis + 1 :]), axis, 0)


def _check_inputs(
    hidden: Array,
    head: Array,
    targets: Array,
    chunk: int,
    reference: tuple[Array, Array] | None,
    divergence: Divergence | None,
) -> None:
    require_axes("hidden", hidden, "T D")
    require_integers("targets", targets)
    if jnp.shape(targets) != jnp.shape(hidden)[:-1]:
        raise ValueError(
            f"targets has shape {jnp.shape(targets)}, but hidden has shape {jnp.shape(hidden)}; targets lacks only D"
        )
    _check_head("hidden", hidden, "head", head)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    if (reference is None) != (divergence is None):
        raise ValueError("reference and divergence go together; only one of them was given")
    if reference is not None:
        _check_head("reference hidden", reference[0], "reference head", reference[1])
        if jnp.shape(reference[0])[:-1] != jnp.shape(targets) or jnp.shape(reference[1])[-1] != jnp.shape(head)[-1]:
            raise ValueError(
                f"reference has shapes {jnp.shape(reference[0])} and {jnp.shape(reference[1])}, but hidden has shape "
                f"{jnp.shape(hidden)} and head {jnp.shape(head)}; all but the width must be equal"
            )


def _check_scale(temperature: float | Array, soft_cap: float | None) -> None:
    if isinstance(temperature, int | float) and not 0 < temperature < float("inf"):
        raise ValueError(f"temperature must be a finite number > 0, got {temperature}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"soft_cap must be a number > 0 or None, got {soft_cap}")


def _check_head(hidden_name: str, hidden: Array, head_name: str, head: Array) -> None:
    if jnp.ndim(head) != 2 or jnp.shape(head)[0] != jnp.shape(hidden)[-1]:
        raise ValueError(
            f"{head_name} has shape {jnp.shape(head)}, but {hidden_name} has shape {jnp.shape(hidden)}; "
            f"{head_name} is [D, V] with the width D of {hidden_name}"
        )
