import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from grpo_jax.core import grpo, kl_divergence, policy_loss, token_logits, token_logprobs
from grpo_jax.testing import oracle

ROWS, T, D, V = (2, 3), 10, 6, 13
CHUNKS = [1, 4, 5, 64]


def problem(seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    hidden = jnp.asarray(rng.normal(size=(*ROWS, T, D)), dtype)
    head = jnp.asarray(rng.normal(size=(D, V)), dtype)
    targets = jnp.asarray(rng.integers(0, V, (*ROWS, T)), jnp.int32)
    reference = jnp.asarray(rng.normal(size=(*ROWS, T, 4)), dtype), jnp.asarray(rng.normal(size=(4, V)), dtype)
    weights = jnp.asarray(rng.normal(size=(3, *ROWS, T)), jnp.float32)
    return hidden, head, targets, reference, weights


def plain(hidden, head, targets, *, temperature=1.0, reference=None, soft_cap=None):
    """Returns log-probability, entropy and divergence from whole `[..., T, V]` tensors."""
    cap = (lambda z: z) if soft_cap is None else (lambda z: soft_cap * jnp.tanh(z / soft_cap))
    logp_V = jax.nn.log_softmax(cap(hidden @ head) / temperature)
    logp = jnp.take_along_axis(logp_V, targets[..., None], -1)[..., 0]
    entropy = -jnp.sum(jnp.exp(logp_V) * logp_V, -1)
    if reference is None:
        return logp, entropy
    ref_logp_V = jax.nn.log_softmax(cap(reference[0] @ reference[1]) / temperature)
    return logp, entropy, jnp.sum(jnp.exp(logp_V) * (logp_V - ref_logp_V), -1)


@pytest.mark.parametrize(("chunk", "soft_cap"), [*((chunk, None) for chunk in CHUNKS), (4, 1.5)])
def test_values_equal_the_oracle(chunk, soft_cap):
    temperature = 0.7
    hidden, head, targets, reference, _ = problem()
    scores = token_logprobs(
        hidden, head, targets, temperature=temperature, chunk=chunk, entropy=True, reference=reference,
        divergence=kl_divergence, soft_cap=soft_cap,
    )  # fmt: skip
    how = {"temperature": temperature, "soft_cap": soft_cap}
    logp, logp_V = oracle.token_logprobs(hidden, head, np.asarray(targets), **how)
    _, ref_logp_V = oracle.token_logprobs(*reference, np.asarray(targets), **how)
    np.testing.assert_allclose(scores.logp, logp, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.entropy, oracle.entropy(logp_V), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(scores.divergence, oracle.kl_divergence(logp_V, ref_logp_V), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("chunk", "soft_cap"), [*((chunk, None) for chunk in CHUNKS), (4, 1.5)])
def test_gradients_equal_those_of_a_plain_log_softmax(chunk, soft_cap):
    hidden, head, targets, reference, weights = problem()

    def ours(hidden, head):
        scores = token_logprobs(
            hidden, head, targets, temperature=0.7, chunk=chunk, entropy=True, reference=reference,
            divergence=kl_divergence, soft_cap=soft_cap,
        )  # fmt: skip
        return jnp.sum(weights * jnp.stack([scores.logp, scores.entropy, scores.divergence]))

    def theirs(hidden, head):
        how = {"temperature": 0.7, "reference": reference, "soft_cap": soft_cap}
        return jnp.sum(weights * jnp.stack(plain(hidden, head, targets, **how)))

    actual = jax.jit(jax.grad(ours, (0, 1)))(hidden, head)
    expected = jax.jit(jax.grad(theirs, (0, 1)))(hidden, head)
    chex.assert_trees_all_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("asked", "soft_cap"), [((), None), (("entropy", "divergence"), None), (("entropy",), 2.0)])
def test_gradients_are_numerical_in_float64(float64, asked, soft_cap):
    hidden, head, targets, reference, weights = problem(dtype=jnp.float64)

    def loss(hidden, head):
        scores = token_logprobs(
            hidden, head, targets, temperature=1.3, chunk=4, entropy="entropy" in asked,
            reference=reference if "divergence" in asked else None,
            divergence=kl_divergence if "divergence" in asked else None, soft_cap=soft_cap,
        )  # fmt: skip
        assert scores.logp.dtype == jnp.float64
        return sum(jnp.sum(w * x) for w, x in zip(weights, jax.tree.leaves(scores), strict=False))

    check_grads(loss, (hidden, head), order=1, modes=["rev"])


def test_gradient_by_hand():
    """d log pi(y) / dz = onehot(y) - p, z = h W / tau: dh = W (onehot - p) / tau and dW = h (onehot - p)^T / tau."""
    hidden, head, targets, _, _ = problem()
    h, y = hidden[0, 0, :1], targets[0, 0, :1]
    residual = np.eye(V)[np.asarray(y[0])] - np.exp(
        oracle.token_logprobs(h, head, np.asarray(y), temperature=2.0)[1][0]
    )
    slopes = jax.grad(lambda h, w: token_logprobs(h, w, y, temperature=2.0).logp.sum(), (0, 1))(h, head)
    np.testing.assert_allclose(slopes[0], [np.asarray(head) @ residual / 2], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(slopes[1], np.outer(h[0], residual) / 2, rtol=1e-5, atol=1e-6)


def test_what_is_not_asked_for_is_none():
    hidden, head, targets, _, _ = problem()
    scores = token_logprobs(hidden, head, targets)
    assert scores.entropy is None
    assert scores.divergence is None
    assert len(jax.tree.leaves(scores)) == 1


def test_reference_and_temperature_are_constants():
    hidden, head, targets, reference, _ = problem()

    def loss(reference, temperature):
        return token_logprobs(
            hidden, head, targets, temperature=temperature, reference=reference, divergence=kl_divergence
        ).divergence.sum()

    for slope in jax.tree.leaves(jax.grad(loss, (0, 1))(reference, jnp.float32(0.7))):
        np.testing.assert_array_equal(slope, 0.0)


def test_bfloat16_hidden_states_give_float32_scores():
    """The products are those of the rounded operands; only sums and softmax are wider."""
    hidden, head, targets, _, weights = problem()
    hidden, head = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16)
    scores = token_logprobs(hidden, head, targets, chunk=4)
    assert scores.logp.dtype == jnp.float32
    exact = oracle.token_logprobs(np.asarray(hidden, np.float64), np.asarray(head, np.float64), np.asarray(targets))[0]
    np.testing.assert_allclose(scores.logp, exact, rtol=1e-5, atol=1e-5)

    slopes = jax.grad(lambda h, w: jnp.sum(weights[0] * token_logprobs(h, w, targets, chunk=4).logp), (0, 1))(
        hidden, head
    )
    wide = jax.grad(lambda h, w: jnp.sum(weights[0] * plain(h, w, targets)[0]), (0, 1))(
        hidden.astype(jnp.float32), head.astype(jnp.float32)
    )
    for slope, expected in zip(slopes, wide, strict=True):
        assert slope.dtype == jnp.bfloat16
        np.testing.assert_allclose(np.asarray(slope, np.float32), expected, rtol=0.05, atol=0.02)


def test_bfloat16_hidden_states_with_a_float32_head():
    hidden, head, targets, _, weights = problem()
    hidden = hidden.astype(jnp.bfloat16)
    slopes = jax.grad(lambda h, w: jnp.sum(weights[0] * token_logprobs(h, w, targets).logp), (0, 1))(hidden, head)
    wide = hidden.astype(jnp.float32)
    expected = jax.grad(lambda h, w: jnp.sum(weights[0] * plain(h, w, targets)[0]), (0, 1))(wide, head)
    assert slopes[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(slopes[1], expected[1], rtol=1e-4, atol=1e-5)


def test_the_head_gradient_of_many_pieces_is_summed_in_float32():
    """4096 equal terms: a bfloat16 accumulator stops growing at 256 of them."""
    hidden, head = jnp.ones((1, 4096, 1), jnp.bfloat16), jnp.zeros((1, 2), jnp.bfloat16)
    targets = jnp.zeros((1, 4096), jnp.int32)
    slope = jax.jit(jax.grad(lambda w: token_logprobs(hidden, w, targets, chunk=1).logp.sum()))(head)
    np.testing.assert_array_equal(np.asarray(slope, np.float32), [[2048.0, -2048.0]])


def test_huge_logits_stay_finite():
    hidden, head = jnp.array([[[1.0]]]), jnp.array([[1e4, -1e4, 0.0]])
    for target, expected in enumerate([0.0, -2e4, -1e4]):
        value, slopes = jax.value_and_grad(
            lambda h, w, y=target: sum(
                map(jnp.sum, jax.tree.leaves(token_logprobs(h, w, jnp.array([[y]]), entropy=True)))
            ),
            (0, 1),
        )(hidden, head)
        np.testing.assert_allclose(value, expected)
        assert all(np.isfinite(slope).all() for slope in slopes)


@pytest.mark.parametrize("target", [-1, V])
def test_a_token_outside_the_vocabulary_is_nan_and_a_mask_removes_it(target):
    hidden, head, targets, _, _ = problem()
    mask = jnp.arange(T) < 7
    mask = jnp.broadcast_to(mask, targets.shape)
    foreign = jnp.where(mask, targets, target)
    assert np.isnan(token_logprobs(hidden, head, foreign).logp[~mask]).all()

    def loss(hidden, head, targets):
        logp = token_logprobs(hidden, head, targets, chunk=4).logp
        return policy_loss(grpo(), logp=logp, mask=mask, advantage=jnp.ones_like(logp), ref_logp=logp - 0.1)[0].mean()

    slopes = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected = slopes(hidden, head, targets)
    chex.assert_trees_all_equal(slopes(hidden, head, foreign), expected)
    np.testing.assert_array_equal(expected[1][0][~mask], 0.0)


class JitEqualsEager(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True)
    def test_both(self):
        hidden, head, targets, _, _ = problem()
        scores = self.variant(lambda *a: token_logprobs(*a, chunk=4, entropy=True))(hidden, head, targets)
        logp, entropy = plain(hidden, head, targets)
        chex.assert_trees_all_close((scores.logp, scores.entropy), (logp, entropy), rtol=1e-5, atol=1e-6)


def test_one_row_and_one_token():
    hidden, head, targets, _, _ = problem()
    np.testing.assert_allclose(
        token_logprobs(hidden[0, 0, :1], head, targets[0, 0, :1]).logp,
        plain(hidden[0, 0, :1], head, targets[0, 0, :1])[0],
        rtol=1e-5,
    )


def compiled(function):
    shapes = [jax.ShapeDtypeStruct(s, d) for s, d in [((4, 64, 32), "float32"), ((32, 2048), "float32")]]
    targets = jnp.zeros((4, 64), jnp.int32)
    return jax.jit(jax.grad(lambda h, w: function(h, w, targets).sum(), (0, 1))).lower(*shapes).compile()


def sizes(program):
    """Returns the number of elements of every float array that the compiled program names."""
    return [math.prod(map(int, s.split(","))) for s in re.findall(r"\bf(?:32|64)\[([\d,]+)\]", program.as_text())]


def test_no_pass_holds_the_logits_of_all_tokens():
    """4 rows of 64 tokens and 2048 words: all logits are 2 MiB, those of 8 tokens of each row 256 KiB."""
    everything = 4 * 64 * 2048
    whole = compiled(lambda h, w, y: plain(h, w, y)[0])
    assert max(sizes(whole)) >= everything
    ours = compiled(lambda h, w, y: token_logprobs(h, w, y, chunk=8).logp)
    assert max(sizes(ours)) <= everything // 8
    bytes_of_all = 4 * everything
    assert whole.memory_analysis().temp_size_in_bytes >= bytes_of_all
    # Two pieces of logits and two head gradients (the sum, and the product that is added) of 256 KiB each, and change.
    assert ours.memory_analysis().temp_size_in_bytes <= bytes_of_all * 5 // 8


def test_entropy_and_divergence_hold_no_more_than_pieces():
    def scores(h, w, y):
        out = token_logprobs(h, w, y, chunk=8, entropy=True, reference=(h, w), divergence=kl_divergence)
        return out.logp + out.entropy + out.divergence

    assert max(sizes(compiled(scores))) <= 4 * 8 * 2048


def test_the_head_gradient_is_added_up_in_place():
    program = compiled(lambda h, w, y: token_logprobs(h, w, y, chunk=8).logp).as_text()
    assert not re.findall(r"f32\[32,2048\]\S* copy\(", program)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"targets": jnp.zeros((*ROWS, T))}, (TypeError, "targets must hold integers, got dtype float32")),
        (
            {"targets": jnp.zeros((T,), int)},
            (ValueError, r"targets has shape \(10,\), but hidden has shape \(2, 3, 10, 6\)"),
        ),
        ({"head": jnp.zeros((V, D))}, (ValueError, r"head has shape \(13, 6\), but hidden has shape \(2, 3, 10, 6\)")),
        ({"hidden": jnp.zeros(D)}, (ValueError, r"hidden needs the trailing axes \[\.\.\., T, D\]")),
        ({"temperature": 0.0}, (ValueError, r"temperature must be a finite number > 0, got 0\.0")),
        ({"temperature": -1}, (ValueError, "temperature must be a finite number > 0, got -1")),
        ({"temperature": float("nan")}, (ValueError, "temperature must be a finite number > 0, got nan")),
        ({"chunk": 0}, (ValueError, "chunk must be at least 1, got 0")),
        ({"soft_cap": 0.0}, (ValueError, r"soft_cap must be a number > 0 or None, got 0\.0")),
        ({"divergence": kl_divergence}, (ValueError, "reference and divergence go together")),
        (
            {"reference": (jnp.zeros((*ROWS, T, 4)), jnp.zeros((4, V)))},
            (ValueError, "reference and divergence go together"),
        ),
        (
            {"reference": (jnp.zeros((*ROWS, T, 4)), jnp.zeros((5, V))), "divergence": kl_divergence},
            (ValueError, r"reference head has shape \(5, 13\), but reference hidden has shape \(2, 3, 10, 4\)"),
        ),
        (
            {"reference": (jnp.zeros((*ROWS, T, 4)), jnp.zeros((4, V + 1))), "divergence": kl_divergence},
            (ValueError, r"reference has shapes \(2, 3, 10, 4\) and \(4, 14\), but hidden has shape \(2, 3, 10, 6\)"),
        ),
    ],
)
def test_bad_inputs_are_refused_while_tracing(change, error):
    hidden, head, targets, _, _ = problem()
    arguments = {"hidden": hidden, "head": head, "targets": targets, **change}
    with pytest.raises(error[0], match=error[1]):
        jax.eval_shape(lambda: token_logprobs(**arguments))


@pytest.mark.parametrize(("temperature", "soft_cap"), [(1.0, None), (0.7, None), (0.7, 1.5)])
def test_logits_are_those_of_the_log_probabilities(temperature, soft_cap):
    """log softmax z at the target is what `token_logprobs` says, and z is the oracle's up to a constant of the row."""
    hidden, head, targets, _, _ = problem()
    logits = token_logits(hidden, head, temperature=temperature, soft_cap=soft_cap)
    assert logits.shape == (*ROWS, T, V)
    how = {"temperature": temperature, "soft_cap": soft_cap}
    logp_V = oracle.token_logprobs(hidden, head, np.asarray(targets), **how)[1]
    away = np.float64(logits) - logp_V
    np.testing.assert_allclose(away, np.broadcast_to(away[..., :1], away.shape), atol=1e-5)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(logp, token_logprobs(hidden, head, targets, **how).logp, rtol=1e-5, atol=1e-6)
    z = np.float64(hidden) @ np.float64(head)
    expected = (z if soft_cap is None else soft_cap * np.tanh(z / soft_cap)) / temperature
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_logits_of_one_position_and_of_bfloat16():
    hidden, head, _, _, _ = problem(dtype=jnp.bfloat16)
    logits = token_logits(hidden, head)
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, np.float32(hidden) @ np.float32(head), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(token_logits(hidden[0, 0, 0], head), logits[0, 0, 0], rtol=1e-6, atol=1e-6)


def test_gradient_of_logits_by_hand(float64):
    """z = c tanh(h W / c) / tau: dz_v/dh = W_v (1 - tanh^2) / tau."""
    hidden, head, _, _, _ = problem(dtype=jnp.float64)
    h = hidden[0, 0, 0]
    actual = jax.jacobian(lambda h: token_logits(h, head, temperature=0.5, soft_cap=2.0))(h)
    slope = (1 - np.tanh(np.asarray(h @ head) / 2.0) ** 2) / 0.5
    np.testing.assert_allclose(actual, np.asarray(head).T * slope[:, None], rtol=1e-10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head": jnp.zeros((V, D))}, r"head has shape \(13, 6\), but hidden has shape \(2, 3, 10, 6\)"),
        ({"temperature": 0.0}, r"temperature must be a finite number > 0, got 0\.0"),
        ({"soft_cap": -1.0}, r"soft_cap must be a number > 0 or None, got -1\.0"),
    ],
)
def test_bad_inputs_of_logits_are_refused(change, message):
    hidden, head, _, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        token_logits(**{"hidden": hidden, "head": head, **change})
