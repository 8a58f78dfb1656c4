"""What a recipe needs beyond its loss: a critic, a greedy baseline, dynamic sampling, shaped lengths, controls."""

import chex
import jax
import numpy as np
import pytest

from grpo_jax.config import ConfigError
from grpo_jax.run import Checkpoints, train
from grpo_jax.run import loop as loop_module
from tests.run.test_loop import must_resume, rows, stop_at

FEW = ("train.steps=2", "checkpoint.every=2", "warmup.steps=0", "data.test_size=2", "eval.samples=2")


PPO = "objective={preset: ppo, reward_kl_coef: {AdaptiveKl: {initial: 0.1, target: 0.5, horizon: 100}}}"


def test_a_run_with_critic_and_controls_resumes_bit_by_bit(tiny_run):
    changes = (PPO, "train.steps=4", "train.minibatches=2", "checkpoint.every=2", "warmup.steps=1")
    whole = train(tiny_run(*changes, out="whole"))
    run = tiny_run(*changes, out="cut")
    train(run, stop=stop_at(2))
    second = train(must_resume(run))
    chex.assert_trees_all_equal(second.state, whole.state)
    assert rows(run) == rows(tiny_run(*changes, out="whole"))
    coefs = [row["reward_kl_coef"] for row in rows(run)]
    assert coefs[0] == pytest.approx(0.1)
    # A KL of almost 0 is more than a fifth below its target, so the full limit of 0.2 counts, for 16 of 100 samples.
    np.testing.assert_allclose(np.diff(np.log(coefs)), np.log(1 - 0.2 * 16 / 100), rtol=1e-4)


def begins_with_a_digit(prompts, completions, **_):
    return [float(text[:1].isdigit()) for text in completions]


def test_a_critic_learns_what_rewards_to_expect(tiny_run):
    """The first token decides, so behind it a critic can know everything: it explains more and more."""
    changes = ("objective={preset: ppo, reward_kl_coef: 0}", "train.steps=60", "train.epochs=4", "train.prompts=16")
    critic = ("optimizer.critic_learning_rate=1e-2", "optimizer.max_grad_norm=")
    run = tiny_run(*changes, *critic, *FEW[1:], rewards=[begins_with_a_digit])
    train(run)
    explained = [row["explained_variance"] for row in rows(run)]
    assert explained[0] == 0.0
    assert np.mean(explained[-3:]) > 0.5
    losses = [row["value_loss"] for row in rows(run)]
    assert np.mean(losses[-3:]) < 0.5 * losses[0]


def seen_batches(monkeypatch):
    """Returns the list that every batch of an update is appended to, with the rewards it was made from."""
    seen = []
    make = loop_module.compiled_batch

    def spy(learner, state, prompt, rollout, grades, layout):
        batch = make(learner, state, prompt, rollout, grades, layout)
        seen.append((grades, jax.tree.map(np.asarray, batch)))
        return batch

    monkeypatch.setattr(loop_module, "compiled_batch", spy)
    return seen


def test_the_baseline_of_remax_is_the_greedy_completion(tiny_run, monkeypatch):
    """The policy at step 1 is the one that answers greedily, so its own greedy draws have advantage 0."""
    seen = seen_batches(monkeypatch)
    train(tiny_run("objective=remax", *FEW[1:], "train.steps=1"))
    grades, batch = seen[0]
    assert np.ptp(grades.greedy_reward) > 0
    expected = np.asarray(grades.reward) - np.asarray(grades.greedy_reward)[:, None]
    np.testing.assert_allclose(batch.advantage[..., 0], expected, rtol=1e-6)


def is_even(prompts, completions, **_):
    """Returns a reward that differs within a group only where the prompt begins with an even digit."""
    return [float(len(text) % 2) if int(prompt[0]) % 2 == 0 else 0.0
            for prompt, text in zip(prompts, completions, strict=True)]  # fmt: skip


def test_dynamic_sampling_replaces_groups_that_teach_nothing(tiny_run, monkeypatch):
    """Without it about half of the groups are flat; with it none is, and the data moves on by whole rounds."""
    seen = seen_batches(monkeypatch)
    run = tiny_run(*FEW, "train.dynamic_rounds=8", rewards=[is_even])
    assert train(run).step == 2
    for row, (grades, _) in zip(rows(run), seen, strict=True):
        assert row["rounds"] > 1
        assert row["flat_groups"] == 0
        assert (np.ptp(np.asarray(grades.reward), axis=1) > 0).all()
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.meta(2)["cursor"] == 4 * sum(row["rounds"] for row in rows(run))
    plain = tiny_run(*FEW, out="plain", rewards=[is_even])
    train(plain)
    assert any(row["flat_groups"] > 0 for row in rows(plain))
    assert {row["rounds"] for row in rows(plain)} == {1}


def test_dynamic_sampling_gives_up_after_its_rounds(tiny_run):
    """Rewards that are all equal can never teach: the batch is then filled up with such groups."""
    run = tiny_run(
        "objective=ppo_clip",
        *FEW,
        "train.dynamic_rounds=3",
        rewards=[lambda prompts, completions, **_: [1.0] * len(prompts)],
    )
    train(run)
    assert [row["rounds"] for row in rows(run)] == [3, 3]
    assert [row["flat_groups"] for row in rows(run)] == [1.0, 1.0]
    assert [row["grad_norm"] for row in rows(run)] == [0.0, 0.0]


def test_a_run_with_dynamic_sampling_resumes_bit_by_bit(tiny_run):
    changes = ("train.dynamic_rounds=4", "train.steps=4", *FEW[2:], "checkpoint.every=2")
    whole = train(tiny_run(*changes, out="whole", rewards=[is_even]))
    run = tiny_run(*changes, out="cut", rewards=[is_even])
    train(run, stop=stop_at(2))
    chex.assert_trees_all_equal(train(must_resume(run)).state, whole.state)


def test_rewards_sink_towards_the_limit(tiny_run, monkeypatch):
    """12 tokens at most and a buffer of 8: n scored tokens cost max(0, n - 4) / 8 of the penalty of 2."""
    seen = seen_batches(monkeypatch)
    train(
        tiny_run("objective=dr_grpo", *FEW[1:], "train.steps=1", "train.overlong_buffer=8", "train.overlong_penalty=2")
    )
    grades, batch = seen[0]
    length = batch.mask.sum(-1)
    shaped = np.asarray(grades.reward) - 2 * np.maximum(length - 4, 0) / 8
    np.testing.assert_allclose(batch.advantage[..., 0], shaped - shaped.mean(1, keepdims=True), rtol=1e-5, atol=1e-6)
    assert np.ptp(length) > 0


def test_truncated_completions_leave_the_loss_but_not_the_group(tiny_run, monkeypatch):
    seen = seen_batches(monkeypatch)
    changes = (*FEW[1:], "train.steps=1", "warmup.steps=60", "warmup.batch=16")
    train(tiny_run(*changes, out="all"))
    train(tiny_run(*changes, "train.mask_truncated=true", out="ended"))
    (_, everything), (_, ended) = seen
    np.testing.assert_array_equal(ended.advantage, everything.advantage)
    dropped = everything.mask.any(-1) & ~ended.mask.any(-1)
    assert 0 < dropped.sum() < dropped.size
    assert (everything.mask.sum(-1)[dropped] == 12).all()


def test_the_reference_moves_part_of_the_way(tiny_run):
    """After the one step it is a quarter of the new policy and three quarters of what it was."""
    changes = ("objective={preset: grpo, kl_coef: 0.1}", *FEW, "train.steps=1")
    mixed = train(tiny_run(*changes, "train.reference_every=1", "train.reference_mix=0.25", out="part")).state
    fixed = train(tiny_run(*changes, out="fixed")).state
    expected = jax.tree.map(lambda new, old: 0.25 * new + 0.75 * old, fixed.params, fixed.reference)
    chex.assert_trees_all_close(mixed.reference, expected, rtol=1e-6, atol=1e-7)
    assert np.abs(fixed.params["embed"] - fixed.reference["embed"]).max() > 1e-4


def test_single_terms_of_the_reward_reach_the_advantage(tiny_run, monkeypatch):
    seen = seen_batches(monkeypatch)
    run = tiny_run("objective={preset: ppo_clip, advantage: TermNormalised}", *FEW[1:], "train.steps=1")
    train(run)
    grades, _ = seen[0]
    assert grades.term_reward.shape == (4, 4, 2)
    np.testing.assert_allclose(grades.term_weight, [1.0, 0.1])
    np.testing.assert_allclose((grades.term_reward * grades.term_weight).sum(-1), grades.reward, rtol=1e-6)


@pytest.mark.parametrize(
    ("correction", "weight"),
    [("TokenTruncated", 1.0), ("{SequenceBand: {high: 3}}", 1.0), ("{OffPolicyMask: {limit: 0.5}}", 1.0)],
)
def test_a_sampler_that_agrees_with_the_trainer_needs_no_correction(tiny_run, correction, weight):
    run = tiny_run(f"objective={{preset: ppo_clip, correction: {correction}}}", *FEW)
    train(run)
    plain = tiny_run("objective=ppo_clip", *FEW, out="plain")
    train(plain)
    for row, other in zip(rows(run), rows(plain), strict=True):
        np.testing.assert_allclose([row["weight"], row["kept"]], [weight, 1.0], rtol=1e-4)
        np.testing.assert_allclose(row["grad_norm"], other["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("sampling.group=1",), "sampling.group: value 1; expected at least 2, because GroupNormalised"),
        (("objective=rloo", "sampling.group=1"), "sampling.group: value 1; expected at least 2"),
        (("objective={preset: grpo, advantage: {PassAtK: {k: 9}}}",), "objective.advantage: PassAtK"),
        (("objective=sft",), "expected one with an advantage"),
        (("objective={preset: grpo, advantage: 'tests.run.test_family:strange'}",), "strange asks for length"),
    ],
)
def test_an_advantage_that_cannot_be_computed_is_refused_before_anything_is_compiled(tiny_run, changes, message):
    with pytest.raises(ConfigError) as error:
        tiny_run(*changes)
    assert message in str(error.value)


def strange(reward, valid, *, length):
    return reward - length


def test_one_completion_a_prompt_is_enough_where_the_baseline_is_not_the_group(tiny_run):
    run = tiny_run("objective=reinforce_pp", "sampling.group=1", *FEW)
    assert train(run).step == 2
    assert all(row["grad_norm"] > 0 for row in rows(run))
