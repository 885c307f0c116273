"""Clips in a few plain tar files, and the journal of their places.

    clips-00000.tar    FLAC members one after the other; `tar -xf` reads it
    journal.jsonl      a line per committed clip: name, shard, offset and length of the FLAC bytes

Contract: a clip is committed when its line is in the journal; its bytes are on the disk before
that. After a kill at any moment, the next `Shards` cuts off everything after the last committed
clip, half members and half lines included, so that interrupted work leaves the same bytes as
uninterrupted work. Owners and times in the tars are constant.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from adrpo_scale.core.files import own, sync_folder, write_all
from adrpo_scale.core.json_files import parse_object

JOURNAL = "journal.jsonl"
COMMIT_EVERY = 32  # clips: a wait for the disk after each would take longer than decoding
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)  # the end of every tar


@dataclass(frozen=True)
class Entry:
    """A committed clip. offset, length: of its FLAC bytes in the shard. samples: at 16 kHz."""

    clip: str
    shard: int
    offset: int
    length: int
    samples: int

    @property
    def reference(self) -> str:
        """The clip's reference for `data.clips.read_clip`."""
        return f"{shard_name(self.shard)}:{self.offset}:{self.length}"

    @property
    def end(self) -> int:
        """Offset of the next member."""
        return self.offset + _padded(self.length)


def shard_name(number: int) -> str:
    return f"clips-{number:05d}.tar"


class Shards:
    """The one writer of a folder's shards. Use it as a context manager: the end of the block
    commits the appended clips and ends the last tar."""

    def __init__(
        self, folder: Path, limit: int, check_owner: Callable[[], None] = lambda: None
    ) -> None:
        """limit: bytes of a shard; one with a single larger clip is larger. check_owner: raises
        where another process has taken over the folder."""
        self.folder, self.limit = folder, limit
        self._check_owner = check_owner
        entries = _committed(folder)
        self.entries = {entry.clip: entry for entry in entries}
        self._number = entries[-1].shard if entries else 0
        self._end = entries[-1].end if entries else 0  # of the last shard's last member
        self._file: int | None = None
        self._waiting: list[Entry] = []

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._check_owner()
            self._finish()
            self._remove_later_shards()
        if self._file is not None:
            os.close(self._file)  # the next start cuts off uncommitted clips

    def append(self, clip: str, flac: bytes, samples: int) -> Entry:
        """Adds a clip that is not in `entries`, to be committed within `COMMIT_EVERY` more."""
        self._check_owner()
        member = _header(clip, len(flac)) + flac
        member += bytes(_padded(len(member)) - len(member))
        if self._end and self._end + len(member) + len(END) > self.limit:
            self._finish()
            self._number, self._end = self._number + 1, 0
        write_all(self._opened(), member)
        offset = self._end + len(member) - _padded(len(flac))
        entry = Entry(clip, self._number, offset, len(flac), samples)
        self._end = entry.end
        self.entries[clip] = entry
        self._waiting.append(entry)
        if len(self._waiting) >= COMMIT_EVERY:
            self._commit()
        return entry

    def _opened(self) -> int:
        """The descriptor of the last shard, cut off after its last member and open there."""
        if self._file is None:
            path = self.folder / shard_name(self._number)
            self._file = own(path, os.O_WRONLY | os.O_CREAT)
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
        return self._file

    def _commit(self) -> None:
        if not self._waiting:
            return
        os.fsync(self._opened())
        lines = "".join(json.dumps(asdict(entry)) + "\n" for entry in self._waiting).encode()
        journal = own(self.folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            write_all(journal, lines)
            os.fsync(journal)
        finally:
            os.close(journal)
        self._waiting.clear()

    def _finish(self) -> None:
        """Commits, and writes the end of the last tar; does nothing where it is there already."""
        path = self.folder / shard_name(self._number)
        if self._file is None and (not self._end or _size(path) == self._end + len(END)):
            return
        write_all(self._opened(), END)
        self._commit()
        os.fsync(self._opened())
        os.close(self._opened())
        self._file = None
        sync_folder(self.folder)

    def _remove_later_shards(self) -> None:
        """Removes shards that were begun before a kill and hold no committed clip."""
        for path in self.folder.glob("clips-*.tar"):
            number = path.name.removeprefix("clips-").removesuffix(".tar")
            if number.isdecimal() and int(number) > self._number - (not self._end):
                path.unlink()


def _committed(folder: Path) -> list[Entry]:
    """The entries of the journal that are whole and whose bytes are there; cuts off the rest."""
    journal = folder / JOURNAL
    raw = journal.read_bytes() if journal.exists() else b""
    sizes: dict[int, int] = {}
    entries, good = [], 0
    for line in raw.splitlines(keepends=True):
        entry = _entry(line)
        if entry is None:
            break
        size = sizes.setdefault(entry.shard, _size(folder / shard_name(entry.shard)))
        if entry.end > size:
            break  # a deleted shard, or one that lost data
        entries.append(entry)
        good += len(line)
    if good < len(raw):
        descriptor = own(journal, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, good)
        finally:
            os.close(descriptor)
    return entries


def _entry(line: bytes) -> Entry | None:
    if not line.endswith(b"\n"):
        return None
    try:
        found = Entry(**parse_object(line, strict=True))
    except (ValueError, TypeError):
        return None
    places = (found.shard, found.offset, found.length, found.samples)
    is_one = isinstance(found.clip, str) and all(type(n) is int and n >= 0 for n in places)
    return found if is_one else None


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _padded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


def _header(clip: str, length: int) -> bytes:
    member = tarfile.TarInfo(clip.replace("/", "_") + ".flac")
    member.size, member.mode = length, 0o644
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
