"""A model's name becomes a directory; the hub is asked for what is needed, and its refusals are explained."""

import types

import huggingface_hub
import pytest
from huggingface_hub import errors

from grpo_jax.models.weights.hub import resolve_model


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
            "pytorch_model.bin",
            "modeling_own.py",
            "consolidated.safetensors",
            "original/params.json",
            "onnx/model.safetensors",
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
        (errors.RevisionNotFoundError("no revision x", response=RESPONSE), "no revision x"),
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
