"""Published weights: one file of a Hugging Face repository, from the cache or the network."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spared_fm.encoders.offline import VARIABLE
from spared_fm.errors import InputError

if TYPE_CHECKING:
    from spared_fm.encoders.registry import Row

USUAL_FILES = ("model.safetensors", "pytorch_model.bin")


def cached(row: Row) -> bool:
    """Whether the weights file of ``row`` lies in the cache, so that no network is needed."""
    if not row.hub:
        return False
    from huggingface_hub import try_to_load_from_cache

    kind, repository = _repository(row)
    found = (
        try_to_load_from_cache(repository, name, revision=row.revision or None, repo_type=kind) for name in _files(row)
    )
    return any(isinstance(path, str) for path in found)


def _reachable() -> bool:
    """Whether the hub's name can be looked up; where a proxy does that, it is taken to be."""
    from huggingface_hub.constants import ENDPOINT

    if urllib.request.getproxies():
        return True
    try:
        socket.getaddrinfo(urllib.parse.urlsplit(ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _repository(row: Row) -> tuple[str | None, str]:
    """Kind and name of the repository, as huggingface_hub takes them."""
    if row.hub.startswith("datasets/"):
        return "dataset", row.hub.removeprefix("datasets/")
    return None, row.hub


def _files(row: Row) -> tuple[str, ...]:
    return (row.file,) if row.file else USUAL_FILES


def fetch(row: Row) -> Path:
    """Fetch the weights file of ``row``; ``HF_HUB_OFFLINE`` and the other settings of huggingface_hub hold.

    Raises
    ------
    InputError
        Nothing is published, access is not granted, there is no network, or the repository has no such file.
    """
    elsewhere = f"give --weights FILE, or name it in the config {VARIABLE} points to; --weights random is a floor"
    if not row.hub:
        raise InputError(f"{row.name}: no published file can be fetched by itself; {elsewhere}")
    from huggingface_hub import errors, hf_hub_download

    kind, repository = _repository(row)
    # Without a network the hub's library tries for a minute, and tells of every try.
    here: dict[str, Any] = {} if _reachable() else {"local_files_only": True}
    absent: Exception | None = None
    for name in _files(row):
        try:
            return Path(hf_hub_download(repository, name, revision=row.revision or None, repo_type=kind, **here))
        except errors.GatedRepoError as error:
            raise InputError(
                f"{row.name}: access to its weights must be granted: ask for access at https://huggingface.co/{row.hub}, "
                f"then `hf auth login`; or {elsewhere}"
            ) from error
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise InputError(
                f"{row.name}: https://huggingface.co/{row.hub} at revision {row.revision!r} is not there or not for you "
                f"(`hf auth login`); {elsewhere}"
            ) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            absent = error  # another of the usual files may lie in the cache
        except errors.EntryNotFoundError:
            continue
        except Exception as error:  # network and file errors of many kinds, all with the same mend
            raise InputError(
                f"{row.name}: its weights can't be fetched ({type(error).__name__}); {elsewhere}"
            ) from error
    if absent is not None:
        raise InputError(f"{row.name}: no network, and its weights are not in the cache; {elsewhere}") from absent
    raise InputError(
        f"{row.name}: https://huggingface.co/{row.hub} has no {row.file or ' or '.join(USUAL_FILES)}; {elsewhere}"
    )
