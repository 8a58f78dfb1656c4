"""A model's name becomes a directory; the hub is asked for what is needed, and its refusals are explained."""

import os
import subprocess
import sys
import types
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors

from grpo_jax.data import HfTokenizer
from grpo_jax.models.weights import load, read_source
from grpo_jax.models.weights.hub import resolve_model
from tests.data.bpe import END, PAD, write_tokenizer
from tests.models.weights.checkpoint import CONFIG, random_tensors, write_checkpoint
from tests.models.weights.small_hub import SmallHub, commit


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """A hub that notes what it is asked for."""
    calls = []

    def download(repository, **options):
        calls.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


def test_a_directory_is_itself(tmp_path, asked, monkeypatch):
    assert resolve_model(tmp_path) == tmp_path
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(resolve_model("owner/model")) == "owner/model"
    assert not asked


def test_a_hub_id_is_fetched_without_code_and_pickles(tmp_path, asked):
    assert resolve_model("owner/model-1.5B") == tmp_path
    assert resolve_model("owner/model@refs/pr/1") == tmp_path
    (first, options), (second, other) = asked
    assert (first, options["revision"]) == ("owner/model-1.5B", None)
    assert (second, other["revision"]) == ("owner/model", "refs/pr/1")
    kept = huggingface_hub.utils.filter_repo_objects(
        [
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
            "merges.txt",
            "chat_template.jinja",
            "additional_chat_templates/tool_use.jinja",
            "additional_chat_templates/own.py",
            "pytorch_model.bin",
            "modeling_own.py",
            "consolidated.safetensors",
            "original/params.json",
            "original/tokenizer.model",
            "onnx/model.safetensors",
            "onnx/chat_template.jinja",
            "onnx/quantised/vocab.txt",
        ],
        allow_patterns=options["allow_patterns"],
        ignore_patterns=options["ignore_patterns"],
    )
    assert list(kept) == [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "additional_chat_templates/tool_use.jinja",
    ]


@pytest.mark.parametrize("name", ["absent", "/absent/model", "./absent", "../absent", "a/b/c", "a b/c"])
def test_a_path_that_does_not_exist_is_not_looked_up(name, asked):
    with pytest.raises(FileNotFoundError, match=r"there is no model directory .*owner/model@revision"):
        resolve_model(name)
    assert not asked


RESPONSE = types.SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.LocalEntryNotFoundError("no"), "the hub cannot be reached and the local cache does not have it"),
        (errors.RepositoryNotFoundError("no", response=RESPONSE), "neither such a directory nor such a repository"),
        (errors.GatedRepoError("no", response=RESPONSE), "it is gated: accept its terms"),
        (errors.RevisionNotFoundError("no", response=RESPONSE), "the repository has no branch, tag or commit main"),
        (errors.HTTPError("the proxy\n\nis away"), "the proxy is away"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_what_the_hub_refuses_is_explained(error, message, monkeypatch):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ValueError, match="model owner/model cannot be fetched: ") as raised:
        resolve_model("owner/model")
    assert message in str(raised.value)


def test_without_a_network_the_cache_is_what_there_is(monkeypatch, tmp_path):
    """The real client, told that it is offline, with an empty cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="the hub cannot be reached and the local cache does not have it"):
        resolve_model("owner/model")


RESOLVE = """
import sys
from grpo_jax.models.weights.hub import resolve_model

for name in sys.argv[1:]:
    try:
        print(resolve_model(name))
    except ValueError as error:
        print(error)
"""

FILES = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def resolved(hub, home, *names):
    """What `resolve_model` says to each name in a new process: the client reads its settings once, at import."""
    own = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{hub.port}", "HF_HOME": str(home)}
    environment |= {"NO_PROXY": "*", "no_proxy": "*"}
    command = [sys.executable, "-c", RESOLVE, *names]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def write_repository(directory, seed):
    """A model with a tokenizer beside what must not be fetched; returns its tensors."""
    raw = CONFIG | {"vocab_size": 290}
    tensors = write_checkpoint(directory, raw, random_tensors(raw, seed=seed))
    write_tokenizer(directory, generation={"eos_token_id": [END, PAD]})
    (directory / "original").mkdir()
    for name in ("modeling_own.py", "pytorch_model.bin", "consolidated.safetensors", "original/params.json"):
        (directory / name).write_text("never read")
    return tensors


def test_the_real_client_fetches_from_a_server_and_later_from_its_cache(tmp_path):
    """Two revisions with weights of their own; what comes is a model, and only files that are needed are asked for."""
    main, branch, home = tmp_path / "main", tmp_path / "branch", tmp_path / "home"
    written = [write_repository(main, 0), write_repository(branch, 1)]
    names = ("owner/tiny", "owner/tiny@refs/pr/1")
    with SmallHub({"owner/tiny": {"main": main, "refs/pr/1": branch}}) as hub:
        directories = resolved(hub, home, *names)
        assert hub.files() == FILES
        hub.asked.clear()
        by_commit = f"owner/tiny@{commit('owner/tiny', 'main')}"
        assert resolved(hub, home, *names, by_commit) == [*directories, directories[0]]
        assert not hub.files()
    for directory, tensors in zip(directories, written, strict=True):
        assert {path.name for path in Path(directory).iterdir()} == FILES
        source = read_source(directory)
        params = load(source.directory, source.config, source.names)
        np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])
        np.testing.assert_array_equal(params["layers"]["down"][2], tensors["model.layers.2.mlp.down_proj.weight"].T)
        tokenizer = HfTokenizer(directory, vocab=source.config.vocab)
        assert tokenizer.eos_ids == (END, PAD)
        assert tokenizer.encode("What is 1?") == HfTokenizer(main).encode("What is 1?")
    # The server is gone.
    *same, absent = resolved(hub, home, *names, "owner/absent")
    assert same == directories
    assert "owner/absent cannot be fetched: the hub cannot be reached and the local cache does not have it" in absent


def test_the_answers_of_a_server_are_explained(tmp_path):
    write_repository(tmp_path / "model", 0)
    revisions = {"main": tmp_path / "model"}
    served = {"owner/tiny": revisions, "owner/gated": revisions}
    with SmallHub(served, gated={"owner/gated"}, forbidden={"owner/forbidden"}, broken={"owner/broken"}) as hub:
        reasons = {
            "owner/absent": "there is neither such a directory nor such a repository",
            "owner/tiny@absent": "the repository has no branch, tag or commit absent",
            "owner/gated": "it is gated: accept its terms",
            "owner/forbidden": "the hub refuses it and the local cache does not have it: 403 Forbidden: no such right.",
            "owner/broken": "",  # the words are the HTTP library's
        }
        said = resolved(hub, tmp_path / "home", *reasons)
    for (name, reason), line in zip(reasons.items(), said, strict=True):
        assert line.startswith(f"model {name} cannot be fetched: {reason}")
