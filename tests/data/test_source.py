"""A task as a value: its rows, demonstrations and rewards, found by the name that a configuration gives it."""

import pytest

from grpo_jax.config import ConfigError, load
from grpo_jax.config.build import build_run
from grpo_jax.data import Source
from grpo_jax.data.source import find_source
from tests.data.counting import COUNTING, exact
from tests.run.conftest import TINY

HERE = "tests.data.counting"


def config(tmp_path, *changes):
    changes = (f"data.source={HERE}:COUNTING", "rewards=[]", *changes)
    return load("configs/arithmetic.yaml", (*TINY, f"out={tmp_path}", "data.test=", *changes))


def test_a_source_of_ones_own_brings_rows_characters_demonstrations_and_rewards(tmp_path):
    run = build_run(config(tmp_path, "seed=3"))
    assert run.train_data.rows[2] == {"prompt": "2+3=", "answer": "5"}
    assert len(run.test_data) == 6
    assert run.tokenizer.alphabet == COUNTING.alphabet
    assert run.demonstrate([1, 2], (3, 0)) == ["4", "5"]
    assert [(reward.name, reward.function) for reward in run.rewards] == [("exact", exact)]


def test_what_a_configuration_says_goes_before_what_the_source_brings(tmp_path):
    named = "rewards=[{function: 'tests.run.rewards:digits', weight: 2}]"
    run = build_run(config(tmp_path, named, "data.alphabet='0123456789+=:'"))
    assert [reward.weight for reward in run.rewards] == [2.0]
    assert run.tokenizer.alphabet.endswith(":")


def test_a_source_checks_its_own_section_before_anything_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.digits: value 2; expected 1, because counting has no more"):
        config(tmp_path, "data.digits=2")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{HERE}:COUNTIG", "data.source: .*has no 'COUNTIG'; did you mean 'COUNTING'"),
        (f"{HERE}:NOT_ONE", "expected a grpo_jax.Source, not a object"),
        ("no_such:thing", "data.source: cannot import 'no_such:thing': No module named"),
        ("numbers", "value 'numbers'; expected 'arithmetic', the path of a .jsonl file, or 'package.module:name'"),
    ],
)
def test_a_name_that_is_no_source_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        find_source(name)
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, f"data.source={name}")


def test_the_task_of_the_library_is_such_a_value():
    assert isinstance(find_source("arithmetic"), Source)
    assert find_source("arithmetic").rewards.keys() == {"arithmetic.answer"}


def test_a_warm_up_without_demonstrations_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "1", "answer": "2"}\n')
    with pytest.raises(
        ConfigError, match=r"warmup\.steps: value 2; expected 0, because the data have no column 'compl"
    ):
        build_run(config(tmp_path, f"data.source={tmp_path}/a.jsonl", "data.test_size=", "data.train_size=",
                         "rewards=[{function: arithmetic.answer}]"))  # fmt: skip
