import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from grpo_jax.core.ratio import per_sequence, per_token, sequence_average, sequence_average_token
from grpo_jax.core.surrogate import PpoClip
from grpo_jax.testing import oracle

ALL = [per_token, per_sequence, sequence_average, sequence_average_token]

MASK = np.array([[True, True, False], [False, True, True], [False] * 3])
LOG_RATIO = np.array([[0.5, -0.25, np.nan], [np.inf, 1.0, 2.0], [-np.inf, np.nan, 1.0]], np.float32)
WEIGHT = np.array([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]], np.float32)


def test_tokens_stand_for_themselves():
    np.testing.assert_array_equal(per_token(LOG_RATIO, MASK), [[0.5, -0.25, 0.0], [0.0, 1.0, 2.0], [0.0] * 3])


def test_a_sequence_stands_for_each_of_its_tokens():
    """exp(0.5 - 0.25) is the product of the token ratios, that is pi(o|q) / pi_old(o|q)."""
    np.testing.assert_array_equal(per_sequence(LOG_RATIO, MASK), [[0.25, 0.25, 0.0], [0.0, 3.0, 3.0], [0.0] * 3])


def test_gradient_of_a_token_is_its_own():
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * per_token(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, np.where(MASK, WEIGHT, 0.0))


def test_gradient_of_a_sequence_reaches_all_of_its_tokens():
    """d/dx_u sum_t w_t m_t sum_u m_u x_u = m_u sum_t w_t m_t: 1 + 2 in the first row, 16 + 32 in the second."""
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * per_sequence(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, [[3.0, 3.0, 0.0], [0.0, 48.0, 48.0], [0.0] * 3])


@pytest.mark.parametrize("ratio", [sequence_average, sequence_average_token])
def test_an_average_stands_for_each_token_of_its_row(ratio):
    """exp((0.5 - 0.25) / 2) is the geometric mean of the token ratios."""
    np.testing.assert_array_equal(ratio(LOG_RATIO, MASK), [[0.125, 0.125, 0.0], [0.0, 1.5, 1.5], [0.0] * 3])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(-50, 50, width=32), st.booleans()), min_size=6, max_size=6))
def test_values_equal_the_oracle(tokens):
    log_ratio = np.array([x for x, _ in tokens], np.float32).reshape(2, 3)
    mask = np.array([scored for _, scored in tokens]).reshape(2, 3)
    average = oracle.sequence_average(log_ratio, mask)
    np.testing.assert_allclose(sequence_average(log_ratio, mask), average, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(sequence_average_token(log_ratio, mask), sequence_average(log_ratio, mask))
    np.testing.assert_allclose(
        per_sequence(log_ratio, mask), oracle.per_sequence(log_ratio, mask), rtol=1e-5, atol=1e-5
    )


def test_gradient_of_an_average_reaches_all_of_its_tokens():
    """d/dx_u sum_t w_t m_t (1/n) sum_u m_u x_u = m_u (1/n) sum_t w_t m_t: (1 + 2) / 2 and (16 + 32) / 2."""
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * sequence_average(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, [[1.5, 1.5, 0.0], [0.0, 24.0, 24.0], [0.0] * 3])


def test_gradient_of_an_average_token_is_its_own():
    """s_t = sg(mean) + x_t - sg(x_t), so ds_t/dx_u = 1 where u = t and 0 elsewhere."""
    gradient = jax.grad(lambda x: jnp.sum(WEIGHT * sequence_average_token(x, MASK)))(LOG_RATIO)
    np.testing.assert_array_equal(gradient, np.where(MASK, WEIGHT, 0.0))


def test_gradients_are_numerical_in_float64(float64, rng):
    """Without `sequence_average_token`, whose stop-gradients a difference quotient does not see."""
    log_ratio = jnp.asarray(rng.normal(size=MASK.shape))
    for ratio in (per_token, per_sequence, sequence_average):
        check_grads(lambda x, r=ratio: jnp.exp(r(x, MASK)), (log_ratio,), order=1, modes=["rev"])


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_with_one_advantage_per_completion_both_averages_learn_the_same(rng, advantage):
    """GSPO-token, section 4.3: clipping, objective and gradient coincide when all A_t of a row are equal."""
    log_ratio = jnp.where(MASK, jnp.asarray(rng.normal(size=MASK.shape) * 0.3, jnp.float32), 0.0)

    def loss(x, ratio):
        return jnp.sum(PpoClip()(ratio(x, MASK), x, jnp.full(MASK.shape, advantage))[0] / MASK.sum(-1).clip(1)[:, None])

    whole, token = (jax.value_and_grad(lambda x, r=r: loss(x, r))(log_ratio) for r in ALL[2:])
    np.testing.assert_allclose(token[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(token[1], whole[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ratio", ALL[2:])
def test_tokens_may_be_permuted_and_padded(rng, ratio):
    log_ratio, order = rng.normal(size=(2, 5)).astype(np.float32), rng.permutation(5)
    mask = np.array([[True] * 5, [True, False, True, False, False]])
    plain = ratio(log_ratio, mask)
    np.testing.assert_allclose(ratio(log_ratio[:, order], mask[:, order]), plain[:, order], rtol=1e-6)
    wider = ratio(np.pad(log_ratio, ((0, 1), (0, 2)), constant_values=np.nan), np.pad(mask, ((0, 1), (0, 2))))
    np.testing.assert_allclose(wider, np.pad(plain, ((0, 1), (0, 2))), rtol=1e-6)


@pytest.mark.parametrize("ratio", ALL)
def test_jit_equals_eager(ratio):
    np.testing.assert_array_equal(jax.jit(ratio)(LOG_RATIO, MASK), ratio(LOG_RATIO, MASK))


@pytest.mark.parametrize("ratio", ALL)
def test_bad_masks_are_refused(ratio):
    with pytest.raises(TypeError, match="mask must be boolean"):
        ratio(LOG_RATIO, MASK.astype(np.int32))
    with pytest.raises(ValueError, match=r"mask has shape \(3,\), but log_ratio has shape \(3, 3\)"):
        ratio(LOG_RATIO, MASK[0])
