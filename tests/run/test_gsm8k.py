"""configs/gsm8k.yaml from end to end on a tiny checkpoint: load, roll out, reward, update, resume, export."""

import importlib.util
import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.cli.main import main
from grpo_jax.config import ConfigError, load
from grpo_jax.config.build import build_run
from grpo_jax.data import Dataset, HfTokenizer
from grpo_jax.models import head, hidden_states, unpacked
from grpo_jax.models.weights import Card, export, read_source
from grpo_jax.models.weights import load as load_weights
from grpo_jax.rewards import Rewards
from grpo_jax.rollout import Sampler
from grpo_jax.run import Checkpoints, evaluate, train
from grpo_jax.run.compiled import compiled_publish
from grpo_jax.run.draw import draw
from grpo_jax.run.evaluation import eval_sampler
from grpo_jax.run.record import read_metrics
from grpo_jax.types import PromptBatch
from tests.data.bpe import END, PAD, write_tokenizer
from tests.models.weights.checkpoint import CONFIG, random_tensors, write_checkpoint
from tests.run.test_loop import must_resume, rows, stop_at

ROWS = [
    {"question": f"What is {a} plus {b}?", "answer": f"{a} plus {b} is <<{a}+{b}={a + b}>>{a + b}.\n#### {a + b}"}
    for a, b in [(1, 2), (3, 4), (5, 6), (7, 8), (2, 9), (4, 4)]
]
QUESTIONS = tuple(row["question"] for row in ROWS)
RAW = CONFIG | {"vocab_size": 320, "tie_word_embeddings": True, "eos_token_id": [END, PAD]}
"""The config.json of a model that begins nearly uniform over its tokens: its weights, norms aside, are small."""


def by_transformers(directory):
    """The model as transformers itself writes it."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; the model written with NumPy stands for it")
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config.from_dict(RAW))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" not in name:
                weight.normal_(std=0.1)
    model.save_pretrained(directory)
    write_tokenizer(directory, texts=QUESTIONS)


def by_numpy(directory):
    """The same without PyTorch; the numbers are others."""
    small = {name: 1.0 + 0 * x if "norm" in name else 0.1 * x for name, x in random_tensors(RAW).items()}
    write_checkpoint(directory, RAW, small)
    write_tokenizer(directory, texts=QUESTIONS, generation={"eos_token_id": [END, PAD]})


@pytest.fixture(scope="module")
def home(request, tmp_path_factory):
    """A directory with a model, whose tokenizer is learnt from the questions, and the questions.

    The model is written by transformers where PyTorch is; a test may ask for one of the two ways.
    """
    home = tmp_path_factory.mktemp("gsm8k")
    write = getattr(request, "param", by_transformers if importlib.util.find_spec("torch") else by_numpy)
    write(home / "model")
    for name, part in (("train", ROWS), ("test", ROWS[:2])):
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return home


def changes(home, out, *more):
    return (
        f"model.path={home / 'model'}",
        "model.dtype=float32",
        "model.remat=none",
        f"data.source={home / 'train.jsonl'}",
        f"data.test={home / 'test.jsonl'}",
        "data.test_size=2",
        "sampling.group=4",
        "sampling.max_tokens=8",
        "train.steps=2",
        "train.prompts=2",
        "train.micro_prompts=",
        "optimizer.learning_rate=1e-3",
        "optimizer.warmup_steps=0",
        "eval.every=",
        "checkpoint.every=1",
        # Random texts hold no right answers; their lengths differ from sample to sample.
        "rewards=[{function: gsm8k.answer}, {function: 'tests.run.rewards:characters', weight: 0.1}]",
        f"out={out}",
        *more,
    )


def run_of(home, out, *more):
    return build_run(load("configs/gsm8k.yaml", changes(home, out, *more)))


@pytest.mark.parametrize("home", [by_transformers, by_numpy], indirect=True)
def test_from_a_directory_to_a_directory(home, tmp_path, capsys):
    """The run starts at the checkpoint's weights, learns, is the same after a stop, and comes out as a model again."""
    source = read_source(home / "model")
    given = load_weights(source.directory, source.config, source.names)
    run = run_of(home, tmp_path / "run")
    train(run, stop=stop_at(1))
    with Checkpoints(run.out / "checkpoints") as saved:
        assert saved.latest() == 1
    result = train(must_resume(run))
    whole = train(run_of(home, tmp_path / "whole"))
    chex.assert_trees_all_equal(result.state, whole.state)
    assert rows(run) == rows(run_of(home, tmp_path / "whole"))
    assert "config.json has a vocabulary of 320 for 278 tokens of " in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(run.out, "eval")] == [0, 2]
    assert all(row["grad_norm"] > 0 and np.isfinite(row["loss"]) for row in rows(run))
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), result.state.params, given)
    assert 1e-3 < max(jax.tree.leaves(moved)) < 1e-2  # two steps of Adam at 1e-3

    assert main(["export", str(run.out), str(tmp_path / "out"), "--dtype", "float32"]) == 0
    again = read_source(tmp_path / "out")
    assert again.config == source.config
    exported = load_weights(again.directory, again.config, again.names)
    chex.assert_trees_all_equal(exported, jax.device_get(result.state.params))
    card = (tmp_path / "out" / "README.md").read_text()
    assert str(home / "model") in card


def test_an_exported_model_has_the_same_logits_in_transformers(home, tmp_path):
    """Both read the exported directory: this library's decoder and transformers' own, which needs PyTorch."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; nothing but this comparison needs it")
    from transformers import AutoModelForCausalLM

    source = read_source(home / "model")
    given = load_weights(source.directory, source.config, source.names)
    tokenizer = HfTokenizer(home / "model", vocab=source.config.vocab)
    card = Card(base="base", step=1, settings="", figures={})
    export(given, source.config, tokenizer, tmp_path / "out", card=card, source=source, dtype="float32")
    tokens = np.array([[5, 9, 30, 40, 50, 60]])
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.tensor(tokens)).logits.numpy()
    prompt = PromptBatch(tokens=tokens[:, :1], mask=np.ones((1, 1), bool))
    following = np.append(tokens[:, 1:], [[0]], 1)[:, None]
    ours = hidden_states(source.config, given, unpacked(prompt, following)) @ head(source.config, given)
    np.testing.assert_allclose(ours[0, 0], theirs[0], atol=1e-4)


def test_prompts_reach_the_model_through_the_template(home, tmp_path):
    run = run_of(home, tmp_path / "run")
    pieces = [run.tokenizer.decode([i]) for i in run.tokenizer.encode(ROWS[0]["question"])]
    assert {"What", " is", " plus"} < set(pieces)  # merges of the questions
    text = run.tokenizer.decode(run.tokenizer.encode_prompt(run.train_data.prompts([0])[0]))
    assert "What is 1 plus 2?" in text
    assert text.endswith("Assistant:")
    own = run_of(home, tmp_path / "run", "data.template=model")
    text = own.tokenizer.prompt_text(own.train_data.prompts([0])[0])
    assert text.startswith("<|im_start|>user\nWhat is 1 plus 2?<|im_end|>")
    quick = run_of(home, tmp_path / "run", "data.template=model", "data.template_options.enable_thinking=false")
    assert quick.tokenizer.prompt_text("two?").endswith("<|im_start|>assistant\n<think></think>")
    assert quick.settings.data.template_options == {"enable_thinking": False}
    assert run.tokenizer.eos_ids == (END, PAD)


def test_long_prompts_are_skipped_and_counted_or_refused(home, tmp_path):
    longest = max(len(run_of(home, tmp_path / "a").tokenizer.encode_prompt(row["question"])) for row in ROWS)
    with open(home / "long.jsonl", "w") as file:
        for row in [*ROWS, {**ROWS[0], "question": "one plus " * 200}]:
            file.write(json.dumps(row) + "\n")
    limit = (f"data.source={home / 'long.jsonl'}", f"data.prompt_length={longest}")
    run = run_of(home, tmp_path / "run", *limit)
    assert len(run.train_data) == len(ROWS)
    assert run.notes[-1] == f"1 of 7 training prompts have more than {longest} tokens and are left out"
    with pytest.raises(ValueError, match="1 of 7 prompts have more tokens than the limit"):
        run_of(home, tmp_path / "run", *limit, "data.too_long=error")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("model.hidden=32",), "model.hidden: value 32; expected null, because model.path has its own shape"),
        (("data.alphabet=ab",), "data.alphabet: value 'ab'; expected null, because model.path has its own tokenizer"),
        (("model.path=",), "model.hidden: missing; expected an integer of at least 1; set model.hidden, or model.path"),
    ],
)
def test_contradictions_are_named(home, tmp_path, more, message):
    with pytest.raises(ConfigError) as error:
        run_of(home, tmp_path / "run", *more)
    assert message in str(error.value)


def test_a_model_that_does_not_exist_is_named(home, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no model directory"):
        run_of(home, tmp_path / "run", f"model.path={tmp_path / 'nowhere'}")


def printed(run, params, prompts):
    """What `eval`, greedy `sample` and `sample --n 4` print of a model after one step."""
    data, texts = Dataset(tuple({"prompt": prompt} for prompt in prompts)), []
    with jax.set_mesh(run.mesh), Rewards(run.rewards) as rewards:
        published = compiled_publish(run.learner.model, params)
        scores = evaluate(run, rewards, published)
        for group, sampler in ((1, Sampler(temperature=0)), (4, eval_sampler(run))):
            drawn = draw(run, published, data, range(len(data)), step=1, group=group, sampler=sampler)
            texts.append("".join(f"{each.prompt}{text}\n" for each in drawn for text in each.completions))
    return ["".join(f"{name:<10}{value:.4f}\n" for name, value in scores.items()), *texts]


def test_adapters_train_on_a_model_and_come_out_merged_or_alone(home, tmp_path, capsys):
    """The base stays as it was read; merged it is another model, and alone the adapters name their base.

    `eval` and `sample` on the run print what the merged model gives, and not what the base gives.
    """
    # Half of the random completions have a digit, so the scores of two models differ.
    judged = (
        "rewards=[{function: 'tests.run.rewards:digits'}]",
        f"data.test={home / 'train.jsonl'}",
        "data.test_size=6",
        "eval.samples=16",
        "optimizer.learning_rate=1e-2",
    )
    out, lora = tmp_path / "run", ("lora.rank=2", "train.steps=1", *judged)
    source = read_source(home / "model")
    given = load_weights(source.directory, source.config, source.names)
    result = train(run_of(home, out, *lora))
    chex.assert_trees_all_equal(result.state.base, given)
    assert main(["export", str(out), str(tmp_path / "whole"), "--dtype", "float32"]) == 0
    again = read_source(tmp_path / "whole")
    merged = load_weights(again.directory, again.config, again.names)
    moved = jnp.abs(merged["layers"]["attention"]["q"] - given["layers"]["attention"]["q"]).max()
    assert 0 < moved < 0.1
    chex.assert_trees_all_equal(merged["embed"], given["embed"])
    assert main(["export", str(out), str(tmp_path / "alone"), "--adapter"]) == 0
    described = json.loads((tmp_path / "alone" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(home / "model")
    assert described["r"] == 2

    arguments, prompts, said = changes(home, out, *lora), QUESTIONS[:2], []
    asked = [word for prompt in prompts for word in ("--prompt", prompt)]
    for command, *more in (["eval"], ["sample", *asked, "--temperature", "0"], ["sample", *asked, "--n", "4"]):
        capsys.readouterr()
        assert main([command, "configs/gsm8k.yaml", *more, *arguments]) == 0
        said.append(capsys.readouterr().out)
    title, said[0] = said[0].split("\n", 1)
    assert title == f"{out}, step 1, 6 held-out problems"
    plain = run_of(home, tmp_path / "plain", *judged, f"model.path={tmp_path / 'whole'}")
    assert plain.learner.lora is None
    assert said == printed(plain, merged, prompts)
    scores, _, sampled = printed(plain, given, prompts)
    assert said[0] != scores
    assert said[2] != sampled
