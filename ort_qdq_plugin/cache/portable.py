"""Entries that are made on one machine and used on others, by any user, from a directory that nobody has to write to.

A model is known by what its files contain, not by where they are. Sizes, and pieces of the content, are compared at each
load. Only where the time of a file's last change is not the recorded one is all of it read. Copies that keep times, as those
of tar, rsync -a and cp -p do, save that.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack, closing

from ort_qdq_plugin import log
from ort_qdq_plugin.cache.entry import Entry, digest_at, open_entry
from ort_qdq_plugin.cache.key import Identity, half, is_key, place_of
from ort_qdq_plugin.cache.manifest import InvalidEntry, Manifest, SourceFile, digest_of
from ort_qdq_plugin.errors import ModelError
from ort_qdq_plugin.model.sources import ExternalFiles
from ort_qdq_plugin.system.platform import files

__all__ = ["find_portable", "portable_key", "portable_source"]

_SAMPLES, _SAMPLE_BYTES = 16, 4096
_SECOND_NS = 1_000_000_000


def portable_key(place: Iterable[object], paths: Iterable[str]) -> str:
    """The name of an entry: of how the model is loaded, and of what its files contain; OSError if they cannot be read."""
    return half(place) + half(map(digest_at, paths))


def portable_source(source: SourceFile, model: str) -> SourceFile:
    """A file of a model as a portable entry knows it: by the locations that the model itself gives, and its content.

    Raises:
        OSError: It cannot be read.
    """
    folder = os.path.dirname(os.path.abspath(model))
    names = tuple(os.path.relpath(name, folder) for name in source.names)
    with files.open_to_read(source.path, follow_link=True) as file:
        samples = _samples_of(file)
    identity = source.identity._replace(inode=0, device=0)
    return source._replace(path=min(names, default=""), names=names, identity=identity, samples=samples)


def find_portable(directory: str, place: Iterable[object], model: str, *, verify: bool) -> Entry | None:
    """The entry of a model that a directory of portable ones has, if it can be used. Nothing is written there.

    Args:
        directory: It, and its entries, may belong to another user or to root, if nobody else can write to them.
        place: How the model is loaded.
        model: Its path.
        verify: Whether to compare all content with the recorded digests.

    Returns:
        The entry, with the model's files in its manifest as they are here.
    """
    begin = half(place)
    try:
        owners = files.owners_of(directory)
        real = files.safe_directory(directory, owners)
        names = sorted(name for name in os.listdir(real) if is_key(name) and place_of(name) == begin)
    except OSError as problem:
        log.warning("prepared models cannot be used: %s", problem)
        return None
    for name in names:
        try:
            return open_entry(
                os.path.join(real, name),
                name,
                verify=verify,
                owners=owners,
                localized=lambda manifest: _here(manifest, model),
            )
        except (InvalidEntry, ModelError, OSError) as problem:
            log.info("prepared model %s is not used: %s", os.path.join(real, name), problem)
    return None


def _here(manifest: Manifest, model: str) -> Manifest:
    """The manifest with the model's files as they are here.

    Raises:
        InvalidEntry: They have other content.
        ModelError, OSError: One of them is not there.
    """
    external, folder = ExternalFiles.beside(model), os.path.dirname(os.path.abspath(model))
    sources = []
    with ExitStack() as opened:
        for source in manifest.sources:
            found = {opened.enter_context(closing(external.open(name))).name for name in source.names}
            path = found.pop() if found else os.path.realpath(model)
            if found:
                raise InvalidEntry(f"{source.path} is several files")
            with files.open_to_read(path, follow_link=True) as file:
                identity = Identity.of(os.fstat(file.fileno()))
                if not _is_same(file, identity, source):
                    raise InvalidEntry(f"{path} has other content")
            names = tuple(os.path.join(folder, name) for name in source.names)
            sources.append(source._replace(path=path, names=names, identity=identity))
    return manifest._replace(sources=tuple(sources))


def _is_same(file: files.File, identity: Identity, recorded: SourceFile) -> bool:
    if identity.size != recorded.identity.size or _samples_of(file) != recorded.samples:
        return False
    times = identity.mtime_ns, recorded.identity.mtime_ns
    if times[0] == times[1] or (
        times[0] // _SECOND_NS == times[1] // _SECOND_NS and not all(at % _SECOND_NS for at in times)
    ):
        return True  # archives keep whole seconds
    log.info("all of %s is read, since the time of its last change is not the recorded one", recorded.path or "the model")
    return digest_of(file) == recorded.digest


def _samples_of(file: files.File) -> str:
    """The digest of some pieces of a file, from its begin to its end."""
    last = max(os.fstat(file.fileno()).st_size - _SAMPLE_BYTES, 0)
    offsets = dict.fromkeys(last * at // (_SAMPLES - 1) for at in range(_SAMPLES))
    return digest_of(b"".join(bytes(chunk) for offset in offsets for chunk in files.chunks(file, offset, _SAMPLE_BYTES)))
