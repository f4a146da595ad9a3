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
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from claimbench.checkpoints import disk, weight_files
from claimbench.checkpoints.local_files import CONFIG_BYTES, Selection, link, select
from claimbench.checkpoints.manifest import sha256_of
from claimbench.checkpoints.sources import HubSource, last_line
from claimbench.checkpoints.weight_files import CONFIG, hint
from claimbench.errors import SourceError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

TIMEOUT_S = 10.0
HEADERS_AT_ONCE = 8
COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[\w+=:-][\w.+=:-]{0,250}")
"""The cache names a file by it."""

SILENT = set[str]()
"""Endpoints that this process could not reach: to ask one again for each model takes as long as each did."""

logger = logging.getLogger(__name__)


def fetch(source: HubSource, folder: Path) -> tuple[str, Selection]:
    """Link the files of `source` into `folder`; returns the commit and the files.

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
            raise SourceError(f"{where}: there is no file {source.path}{hint(names)}")
        chosen = Selection([source.path])
    else:
        chosen = select(names, lambda name: hub.file(name).read_text(encoding="utf-8"), where)
    disk.require_space(hub.cache, sum(sizes.get(name, 0) for name in chosen.names if not hub.has(name)))
    for name in chosen.names:
        link(hub.file(name), folder / Path(name).name)
    return commit, chosen._replace(names=[Path(name).name for name in chosen.names])


class OnHub(NamedTuple):
    """What is known of a source without its weights."""

    commit: str
    names: Collection[str]
    config: Path | None
    """Its config's place in the cache; None where a GGUF holds it."""
    sizes: Mapping[str, int] = {}
    """In bytes, by name; nothing of what the cache alone told."""


def look_up(source: HubSource) -> OnHub | None:
    """What `source` stands for now; of its files the config alone is downloaded.

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
        sizes = dict[str, int]()
    else:
        commit, sizes = str(info.sha), {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}
        names = set(sizes)
    hub = _Hub(source.repository, commit, where, offline=info is None)
    if info is not None and source.revision != commit:
        hub.remember(source.revision)
    if info is None and (source.path or CONFIG) not in names:
        return None
    if source.path is not None:
        if source.path not in names:
            raise SourceError(f"{where}: there is no file {source.path}{hint(names)}")
        return OnHub(commit, names, None, sizes)
    if CONFIG not in names:
        raise SourceError(f"{where}: expected a file {CONFIG}, which is missing{hint(names)}")
    if sizes.get(CONFIG, 0) > CONFIG_BYTES:
        raise SourceError(f"{where}: {CONFIG}: expected at most {CONFIG_BYTES} bytes, found {sizes[CONFIG]}")
    return OnHub(commit, names, hub.file(CONFIG), sizes)


def tensors_of(source: HubSource) -> list[tuple[str, str, int]]:
    """Name, type and bytes of each tensor, from the headers of the files alone.

    Raises:
        SourceError: the hub does not give them.
    """
    from huggingface_hub import HfApi

    where, api = f"hf://{source.repository}@{source.revision}", HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    files, commit = _weights(source, where)
    try:
        with ThreadPoolExecutor(HEADERS_AT_ONCE) as pool:
            header = partial(api.parse_safetensors_file_metadata, source.repository, revision=commit)
            headers = list(pool.map(header, files))
    except Exception as error:  # the hub's library and its HTTP library each have their own
        reason = first_line(error)
        raise SourceError(f"{where}: the hub did not give the headers of its weights: {reason}") from None
    tensors = {name: one for each in headers for name, one in each.tensors.items()}
    return [(name, str(one.dtype), one.data_offsets[1] - one.data_offsets[0]) for name, one in tensors.items()]


def _weights(source: HubSource, where: str) -> tuple[list[str], str]:
    """The files that hold the weights of `source`, and the commit that it stands for now."""
    found = look_up(source)
    if found is None:
        raise SourceError(f"{where}: the hub did not give the headers of its weights: it does not answer")
    hub = _Hub(source.repository, found.commit, where, offline=False)
    chosen = weight_files.choose(found.names, lambda name: hub.file(name).read_text(encoding="utf-8"), where)
    return [name for name in chosen if name.endswith(".safetensors")], found.commit


def fetch_config(source: HubSource, folder: Path) -> tuple[str, Selection]:
    """Link the config of `source` alone into `folder`; returns the commit and its name."""
    found = look_up(source)
    if found is None or found.config is None:
        where = f"hf://{source.repository}@{source.revision}"
        raise SourceError(f"{where}: the hub cannot be reached and the local cache does not have its {CONFIG}")
    link(found.config, folder / CONFIG)
    return found.commit, Selection([CONFIG])


def beginning(source: HubSource, most: int) -> bytes:
    """The first `most` bytes of the file that `source` names, at the commit that it names, or all of a shorter one.

    Raises:
        SourceError: the hub refuses it, or does not answer.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status  # type: ignore[attr-defined]

    where = f"hf://{source.repository}@{source.revision}/{source.path}"
    endpoint = os.environ.get("HF_ENDPOINT")
    url = hf_hub_url(source.repository, str(source.path), revision=source.revision, endpoint=endpoint)
    asked, found = {**build_hf_headers(), "range": f"bytes=0-{most - 1}"}, bytearray()
    try:
        with get_session().stream("GET", url, headers=asked, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            for part in answer.iter_bytes():
                found += part
                if len(found) >= most:  # whoever ignores the range sends all of it
                    break
    except Exception as error:  # see `_ask`
        raise SourceError(f"{where}: its header could not be fetched: {first_line(error)}") from None
    return bytes(found[:most])


def is_commit(revision: str) -> bool:
    return COMMIT.fullmatch(revision) is not None


def _ask(source: HubSource, where: str) -> ModelInfo | None:
    """What the hub says about the revision; None where it does not answer."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    if api.endpoint in SILENT:
        return None
    try:
        return api.model_info(source.repository, revision=source.revision, files_metadata=True, timeout=TIMEOUT_S)
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise SourceError(
                f"{where}: the hub refused it ({status}): it is gated, private or misspelled: accept its terms on its "
                "page, and put a token of the hub into HF_TOKEN"
            ) from None
        if status is not None and status < 500:
            raise SourceError(f"{where}: the hub refused it: {first_line(error)}") from None
        reason = first_line(error)
    except Exception as error:  # the hub's HTTP library changes between versions: any failure to connect
        reason = first_line(error)
        SILENT.add(api.endpoint)
    logger.warning("%s: the hub cannot be reached (%s): looking in the local cache", where, reason)
    return None


def first_line(error: Exception) -> str:
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
    return snapshot.name, {str(entry.relative_to(snapshot)) for entry in snapshot.rglob("*") if entry.is_file()}


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
            if not self._offline:
                self._require_honest(name)
            path = hf_hub_download(
                self._repository,
                name,
                revision=self._commit,
                force_download=anew,
                local_files_only=self._offline,
                endpoint=os.environ.get("HF_ENDPOINT"),
                etag_timeout=TIMEOUT_S,
            )
        except SourceError:
            raise
        except OSError as error:
            if error.errno in disk.FULL:
                raise
            raise SourceError(f"{self._where}: {name} could not be fetched: {first_line(error)}") from None
        except Exception as error:  # see `_ask`
            raise SourceError(f"{self._where}: {name} could not be fetched: {first_line(error)}") from None
        return Path(path).resolve()

    def _require_honest(self, name: str) -> None:
        """Raises SourceError where the hub answers for another commit, or with a name that leads out of the cache."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        endpoint = os.environ.get("HF_ENDPOINT")
        url = hf_hub_url(self._repository, name, revision=self._commit, endpoint=endpoint)
        found = get_hf_file_metadata(url, timeout=TIMEOUT_S, endpoint=endpoint)
        if found.commit_hash != self._commit:
            raise SourceError(
                f"{self._where}: {name}: expected it at commit {self._commit}, the hub answered for {found.commit_hash}"
            )
        if found.etag is None or not ETAG.fullmatch(found.etag):
            raise SourceError(f"{self._where}: {name}: expected an ETag that can be a file's name, got {found.etag!r}")


def _is_intact(blob: Path) -> bool:
    """Large files are named by their sha256, small ones as git names them; other names say nothing."""
    if re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return sha256_of(blob) == blob.name
    if COMMIT.fullmatch(blob.name):
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        return git.hexdigest() == blob.name
    return True
