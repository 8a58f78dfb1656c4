"""Where a model is: a directory, or a repository of the Hugging Face hub that is fetched into the local cache."""

from __future__ import annotations

import re
from pathlib import Path

FILES = ("*.safetensors", "*.json", "*.txt", "*.model")
TEMPLATES = ("chat_template.jinja", "additional_chat_templates/*.jinja")

FETCHED = (*FILES, *TEMPLATES)
"""Weights, configurations and tokenizers. Neither code nor pickles are fetched."""

SKIPPED = (*(f"*/{name}" for name in FILES), "consolidated*")
"""Copies of the weights in other layouts; a `*` of the patterns crosses folders."""

_ID = re.compile(r"(?P<id>(?!\.)[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def hub_id(name: str | Path) -> tuple[str, str | None] | None:
    """Returns repository and revision of a model of the hub; None for a directory, and what is no hub id.

    >>> hub_id("owner/model@v1"), hub_id("owner/model"), hub_id("./model")
    (('owner/model', 'v1'), ('owner/model', None), None)
    """
    match = None if Path(name).is_dir() else _ID.fullmatch(str(name))
    return None if match is None else (match["id"], match["revision"])


def resolve_model(name: str | Path) -> Path:
    """Returns the directory of a model; one of the hub is fetched first, unless the cache has it.

    Args:
      name: a directory, `owner/model` of the hub, or `owner/model@revision`.

    Raises:
      FileNotFoundError: no such directory, and not the form of a hub id.
      ValueError: the hub does not have it, does not give it, or cannot be reached.
    """
    if Path(name).is_dir():
        return Path(name)
    found = hub_id(name)
    if found is None:
        raise FileNotFoundError(
            f"there is no model directory {name} (a relative path starts at {Path.cwd()}; a model of the hub is "
            "written owner/model or owner/model@revision)"
        )
    return _fetch(*found, str(name))


def _fetch(repository: str, revision: str | None, name: str) -> Path:
    # Imported here: it brings an HTTP client, and most runs read a directory.
    from huggingface_hub import errors, snapshot_download

    patterns = {"allow_patterns": list(FETCHED), "ignore_patterns": list(SKIPPED)}
    try:
        return Path(snapshot_download(repository, revision=revision, **patterns))
    except errors.GatedRepoError:
        reason = "it is gated: accept its terms on the hub and log in (`hf auth login`)"
    except errors.RepositoryNotFoundError:
        reason = "there is neither such a directory nor such a repository, or it is private: log in (`hf auth login`)"
    except errors.RevisionNotFoundError:
        reason = f"the repository has no branch, tag or commit {revision or 'main'}"
    except errors.LocalEntryNotFoundError as error:
        reason = "the hub cannot be reached and the local cache does not have it: fetch it while online, or give a path"
        # Every answer but 401 and 404 is to the client a hub that is away: a token without rights, too many requests.
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            reason = f"the hub refuses it and the local cache does not have it: {error.__cause__}"
    except (errors.HTTPError, OSError) as error:
        # HTTPError is of the HTTP client's library, httpx or its successor: a proxy, a connection that breaks off.
        reason = f"{error}"
    raise ValueError(f"model {name} cannot be fetched: {' '.join(reason.split())}")
