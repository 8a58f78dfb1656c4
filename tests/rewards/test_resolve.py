"""Names of rewards, and the messages for names that lead nowhere."""

import pytest
import reward_functions

from grpo_jax.rewards import arithmetic, resolve


@pytest.mark.parametrize("name", ["answer", "steps", "format"])
def test_this_package_rewards_have_short_names(name):
    assert resolve(f"arithmetic.{name}") is getattr(arithmetic, name)


def test_any_importable_function_has_a_name():
    assert resolve("reward_functions:length") is reward_functions.length


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("arithmetic.anser", r"'arithmetic.anser' is unknown; did you mean 'arithmetic.answer'\?"),
        ("zzz", r"'zzz' is unknown; known: arithmetic.answer, arithmetic.format, arithmetic.steps, gsm8k"),
        ("arithmetic._steps", "is unknown"),
        ("no_such_module:f", r"No module named 'no_such_module'; is its folder on PYTHONPATH\?"),
        ("reward_functions:lenght", r"reward_functions has no 'lenght'; did you mean 'length'\?"),
        ("math:pi", r"'math:pi' is a float: name a function"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error(target, message):
    with pytest.raises(ValueError, match=message):
        resolve(target)
