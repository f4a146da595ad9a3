"""A model repository on the hub, at one commit, through huggingface_hub and its cache.

The hub's library reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE itself and shares its cache with every other
tool; the files are linked from there. A connection that is cut is resumed where it stopped; a process that is killed is
resumed at the file where it stopped. A file in the cache carries its expected hash as its name, so it can be checked
without the network.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from claimbench.checkpoints import disk
from claimbench.checkpoints.local_files import CONFIG, link, select
from claimbench.checkpoints.manifest import sha256_of
from claimbench.checkpoints.sources import HubSource, last_line
from claimbench.errors import SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT_S = 10.0
COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def fetch(source: HubSource, folder: Path) -> tuple[str, list[str]]:
    """Link the files of `source` into `folder`; returns the commit and the files' names.

    Where the hub cannot be reached, what the cache holds of that revision is taken, if it is whole.
    """
    where = f"hf://{source.repository}@{source.revision}"
    info = _ask(source, where)
    if info is None:
        commit, names, sizes = *_cached(source, where), {}
    else:
        commit, sizes = str(info.sha), {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
        names = set(sizes)
    hub = _Hub(source.repository, commit, where, offline=info is None)
    if source.path is not None:
        if source.path not in names:
            raise SourceError(f"{where}: there is no file {source.path}{_hint(names)}")
        chosen = [source.path]
    else:
        chosen = select(names, lambda name: hub.file(name).read_text(encoding="utf-8"), where)
    disk.require_space(hub.cache, sum(sizes.get(name, 0) for name in chosen if not hub.has(name)))
    for name in chosen:
        link(hub.file(name), folder / Path(name).name)
    if info is not None and source.revision != commit:
        hub.remember(source.revision)
    return commit, [Path(name).name for name in chosen]


def config_of(source: HubSource) -> tuple[str, Path | None] | None:
    """The commit that `source` stands for now, and its config's place in the cache, where it has one; no weights.

    None where the hub cannot be reached and the cache does not have it.

    Raises:
        SourceError: the hub refuses it, or it has no config.
    """
    where = f"hf://{source.repository}@{source.revision}"
    info = _ask(source, where)
    if info is None:
        try:
            commit, names = _cached(source, where)
        except SourceError:
            return None
    else:
        commit, names = str(info.sha), {entry.rfilename for entry in info.siblings or ()}
    if source.path is not None:
        return commit, None
    if CONFIG not in names:
        raise SourceError(f"{where}: expected a file {CONFIG}, which is missing{_hint(names)}")
    return commit, _Hub(source.repository, commit, where, offline=info is None).file(CONFIG)


def tensors_of(source: HubSource, commit: str) -> list[tuple[str, str, int]] | None:
    """Name, type and bytes of each tensor, from the headers of the files alone; None: the hub does not say."""
    from huggingface_hub import HfApi

    try:
        found = HfApi(endpoint=os.environ.get("HF_ENDPOINT")).get_safetensors_metadata(
            source.repository, revision=commit
        )
    except Exception as error:  # as in `_ask`; without it the model has no ceiling, and all else goes on
        logger.warning("hf://%s: no headers of its files (%s)", source.repository, _first_line(error))
        return None
    tensors = ((name, one) for file in found.files_metadata.values() for name, one in file.tensors.items())
    return [(name, str(one.dtype), one.data_offsets[1] - one.data_offsets[0]) for name, one in tensors]


def fetch_config(source: HubSource, folder: Path) -> tuple[str, list[str]]:
    """Link the config of `source` alone into `folder`; returns the commit and its name."""
    commit, path = config_of(source) or ("", None)
    if path is None:
        where = f"hf://{source.repository}@{source.revision}"
        raise SourceError(f"{where}: the hub cannot be reached and the local cache does not have its {CONFIG}")
    link(path, folder / CONFIG)
    return commit, [CONFIG]


def _hint(names: Collection[str]) -> str:
    """What else a repository without a config may be."""
    if "adapter_config.json" in names:
        return ": it is an adapter, which changes another model: merge it into that one first"
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    return f": name one of its GGUF files, such as @main/{ggufs[0]}" if ggufs else ""


def _ask(source: HubSource, where: str) -> ModelInfo | None:
    """What the hub says about the revision; None where it does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi(endpoint=os.environ.get("HF_ENDPOINT")).model_info(
            source.repository, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status is not None and status < 500:
            raise SourceError(f"{where}: the hub refused it: {_first_line(error)}") from None
        reason = _first_line(error)
    except Exception as error:  # the hub's HTTP library changes between versions: any failure to connect
        reason = _first_line(error)
    logger.warning("%s: the hub cannot be reached (%s): looking in the local cache", where, reason)
    return None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return last_line(lines[0]) if lines else type(error).__name__


def _cached(source: HubSource, where: str) -> tuple[str, set[str]]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        snapshot = Path(snapshot_download(source.repository, revision=source.revision, local_files_only=True))
    except LocalEntryNotFoundError:
        raise SourceError(
            f"{where}: the hub cannot be reached and the local cache does not have it: check the network, HF_ENDPOINT "
            "and HF_HUB_OFFLINE, or use a file:// source"
        ) from None
    return snapshot.name, {entry.name for entry in snapshot.iterdir()}


class _Hub:
    """One commit of one repository."""

    def __init__(self, repository: str, commit: str, where: str, offline: bool) -> None:
        from huggingface_hub import constants

        if not COMMIT.fullmatch(commit):
            raise SourceError(f"{where}: expected a commit of 40 hex digits, the hub answered {commit!r}")
        self.cache = Path(constants.HF_HUB_CACHE)
        self._repository, self._commit, self._where, self._offline = repository, commit, where, offline

    def has(self, name: str) -> bool:
        from huggingface_hub import try_to_load_from_cache

        return isinstance(try_to_load_from_cache(self._repository, name, revision=self._commit), str)

    def remember(self, revision: str) -> None:
        """Note in the cache which commit `revision` stood for, as the library does, so that it is found offline."""
        from huggingface_hub.file_download import repo_folder_name

        note = self.cache / repo_folder_name(repo_id=self._repository, repo_type="model") / "refs" / revision
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(self._commit, encoding="utf-8")

    def file(self, name: str) -> Path:
        """The file's place in the cache, its content compared with its name; fetched anew once where they differ."""
        blob = self._download(name, anew=False)
        if not _is_intact(blob):
            logger.warning("%s: %s in the cache is damaged: fetching it again", self._where, name)
            blob.unlink(missing_ok=True)
            blob = self._download(name, anew=True)
            if not _is_intact(blob):
                raise SourceError(
                    f"{self._where}: {name}: expected content {blob.name}, arrived something else: run again"
                )
        return blob

    def _download(self, name: str, anew: bool) -> Path:
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self._repository,
                name,
                revision=self._commit,
                force_download=anew,
                local_files_only=self._offline,
                endpoint=os.environ.get("HF_ENDPOINT"),
                etag_timeout=TIMEOUT_S,
            )
        except OSError as error:
            if error.errno in disk.FULL:
                raise
            raise SourceError(f"{self._where}: {name} could not be fetched: {_first_line(error)}") from None
        except Exception as error:  # see `_ask`
            raise SourceError(f"{self._where}: {name} could not be fetched: {_first_line(error)}") from None
        return Path(path).resolve()


def _is_intact(blob: Path) -> bool:
    """Large files are named by their sha256, small ones as git names them; other names say nothing."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_of(blob) == blob.name
    if COMMIT.fullmatch(blob.name):
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return git.hexdigest() == blob.name
    return True
