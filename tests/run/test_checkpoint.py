"""Save and restore as functions of a state, and checkpoints that hold something else."""

import chex
import jax
import optax
import pytest

from grpo_jax.core import grpo, ppo_clip
from grpo_jax.learn import init_state
from grpo_jax.mesh import make_mesh
from grpo_jax.models import Lora
from grpo_jax.run import CheckpointError, Checkpoints, restore, save
from tests.learn.small import MODEL, learner
from tests.rollout.small import random_params

KEY = jax.random.key(0)


@pytest.mark.parametrize("lora", [None, Lora(rank=2)], ids=["weights", "adapters"])
def test_a_state_comes_back_with_what_was_said_beside_it(tmp_path, lora):
    one = learner(grpo(), lora=lora)
    state = init_state(one, random_params(MODEL), KEY)
    with Checkpoints(tmp_path) as saved:
        save(saved, 3, state, {"cursor": 24})
    with Checkpoints(tmp_path) as saved:
        got, meta = restore(saved, one, make_mesh())
    chex.assert_trees_all_equal(got, state)
    assert meta["cursor"] == 24


def test_there_is_nothing_to_restore_in_an_empty_directory(tmp_path):
    with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match="has no valid checkpoint"):
        restore(saved, learner(grpo()), make_mesh())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (learner(grpo(), optimizer=optax.sgd(0.1, momentum=0.9)), r"first opt_state\.0\.trace.* \(missing there"),
        (learner(grpo(), optimizer=optax.sgd(0.1)), r"first opt_state\.0\.count \(int32\[\] there, none now\)"),
        (learner(ppo_clip()), r"first reference\..* \(float32\[.*\] there, none now\)"),
        (learner(grpo(), lora=Lora(rank=2)), r"arrays differ"),
    ],
    ids=["momentum", "plain", "no reference", "adapters"],
)
def test_a_checkpoint_of_another_structure_is_refused_in_words(tmp_path, other, message):
    with Checkpoints(tmp_path) as saved:
        save(saved, 1, init_state(learner(grpo()), random_params(MODEL), KEY))
    with Checkpoints(tmp_path) as saved, pytest.raises(CheckpointError, match=message) as error:
        restore(saved, other, make_mesh())
    assert "of another optimizer, model or objective" in str(error.value)
    assert "resume=never" in str(error.value)
