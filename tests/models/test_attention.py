"""Attention in blocks is attention: against the formula in float64, whatever the blocks, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models.attention import Own, Shared, attend
from grpo_jax.models.blocks import blocks

P, G, Q, K, R, C, S = 2, 3, 13, 2, 2, 4, 7
BLOCKS = (None, 128, 6, 5)


def causal(window=None):
    query, key = np.arange(Q)[:, None], np.arange(Q)
    seen = key <= query
    return seen if window is None else seen & (key > query - window)


def packed():
    """Rows of completions one behind the other, each of one of two prompts; that of the last row has no token."""
    ends = np.array([[[4, 9], [1, 12], [13, 13]], [[6, 7], [5, 5], [2, 3]]])
    segment = (np.arange(Q) >= ends[..., None]).sum(2)
    own = causal() & (segment[..., :, None] == segment[..., None, :])
    prompt = (np.arange(S) < 3) == (segment % 2 == 0)[..., None]
    prompt[1, 2] = False
    return own, prompt


MASKS = {
    "a prompt for all": (causal()[None, None], np.arange(S) < np.array([5, 2])[:, None, None, None]),
    "within a window": (
        causal(4)[None, None],
        np.broadcast_to(np.arange(S) > np.arange(Q)[:, None] - 2, (P, 1, Q, S)),
    ),
    "several to a row": packed(),
    "no prompt": (causal()[None, None], None),
}


def inputs(own, prompt, dtype=np.float64):
    random = np.random.default_rng(0)
    shapes = [(P, G, Q, K, R, C), (P, K, G, C, Q), (P, K, G, Q, C)]
    shapes += [] if prompt is None else [(P, K, C, S), (P, K, S, C)]
    return [random.normal(size=shape).astype(dtype) for shape in shapes]


def blocked(own, prompt, block, cap=None):
    def out(query, key, value, *shared):
        shared = Shared(*shared, jnp.asarray(prompt)) if shared else None
        return attend(query, shared, Own(key, value, jnp.asarray(own)), scale=0.7, cap=cap, block=block)

    return out


def formula(own, prompt, cap=None):
    """One softmax over all keys of each query, written out."""

    def out(query, key, value, *shared):
        scores = [jnp.einsum("pgqkrc,pkgcu->pgqkru", query, key)]
        values, seen = [jnp.einsum("pkguc->pgukc", value)], [np.broadcast_to(own, (P, G, Q, Q))]
        if shared:
            scores.append(jnp.einsum("pgqkrc,pkcs->pgqkrs", query, shared[0]))
            values.append(jnp.broadcast_to(jnp.einsum("pksc->pskc", shared[1])[:, None], (P, G, S, K, C)))
            seen.append(np.broadcast_to(prompt, (P, G, Q, S)))
        score = 0.7 * jnp.concatenate(scores, -1)
        score = score if cap is None else cap * jnp.tanh(score / cap)
        score = jnp.where(np.concatenate(seen, -1)[:, :, :, None, None], score, -jnp.inf)
        return jnp.einsum("pgqkru,pgukc->pgqkrc", jax.nn.softmax(score), jnp.concatenate(values, 2))

    return out


def value_and_gradients(function, arrays):
    weight = np.random.default_rng(1).normal(size=arrays[0].shape)

    @jax.jit
    def both(*arrays):
        out, pull = jax.vjp(function, *arrays)
        return out, *pull(jnp.asarray(weight, out.dtype))

    return both(*arrays)


@pytest.mark.parametrize("cap", [None, 1.5], ids=["", "capped"])
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_attention_and_its_gradients_are_those_of_the_formula_in_any_blocks(double, masks, cap):
    arrays = inputs(*masks)
    expected = value_and_gradients(formula(*masks, cap), arrays)
    for block in BLOCKS:
        got = value_and_gradients(blocked(*masks, block, cap), arrays)
        for one, other in zip(got, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12, err_msg=f"block {block}")


def test_half_precision_rounds_operands_and_not_sums():
    arrays = [x.astype(jnp.bfloat16) for x in inputs(*MASKS["several to a row"])]
    exact = [np.asarray(x, np.float32) for x in arrays]
    expected = value_and_gradients(formula(*MASKS["several to a row"]), exact)
    for block in (None, 5):
        got = value_and_gradients(blocked(*MASKS["several to a row"], block), arrays)
        for one, other in zip(got, expected, strict=True):
            assert one.dtype == jnp.bfloat16
            # Two roundings to 8 bits, of sums of up to 20 terms of size 1.
            np.testing.assert_allclose(np.asarray(one, np.float32), other, rtol=2**-6, atol=2**-5)


def test_a_block_that_no_query_sees_is_not_computed():
    """NaN in it would reach every result that it takes part in, with a weight of 0 too."""
    own, prompt = MASKS["several to a row"]
    query, *rest = inputs(own, prompt, np.float32)
    last, first = np.r_[np.zeros(10), [np.nan] * 3].astype(np.float32), np.r_[[np.nan] * 5, np.zeros(8)]
    key, value, *shared = rest
    behind = [key + last, value + last[:, None], *shared]
    out = blocked(own, prompt, 5)
    clean, dirty = out(query, *rest), out(query, *behind)
    np.testing.assert_array_equal(dirty[:, :, :10], clean[:, :, :10])
    assert np.isnan(dirty[:, :, 10:]).all()
    window = np.broadcast_to(causal(2), (1, 1, Q, Q))
    before = [key + first.astype(np.float32), value + first.astype(np.float32)[:, None]]
    clean, dirty = (blocked(window, None, 5)(query, *each) for each in ((key, value), before))
    np.testing.assert_array_equal(dirty[:, :, 10:], clean[:, :, 10:])


def test_blocks_reach_from_the_first_key_to_the_last_that_is_seen():
    own = np.broadcast_to(causal(3), (1, 1, Q, Q))[:, :, :12, :12]
    found = blocks(jnp.asarray(own), 12, 4)
    assert (found.number, found.queries, found.keys) == (3, 4, 4)
    assert found.first.tolist() == [0, 0, 1]
    assert found.last.tolist() == [1, 2, 3]
    nothing = blocks(jnp.zeros((1, 1, 1, 12), bool), 12, 4)
    assert (nothing.last - nothing.first).tolist() == [0, 0, 0]


@pytest.mark.parametrize("shift", [-200.0, 200.0])
def test_one_softmax_spans_both_segments_whichever_outweighs_the_other(shift):
    """exp(200) is no float32: the maximum of both segments has to leave the exponent."""
    one, seen = jnp.ones((1,) * 6), jnp.ones((1, 1, 1, 1), bool)
    own = Own(one[0], 5 * one[0], seen)

    def out(key):
        return attend(one, Shared(key, 3 * one[0, 0], seen), own).sum()

    value, slope = jax.value_and_grad(out)(shift * one[0, 0])
    assert value == (3 if shift > 0 else 5)
    assert slope == 0
