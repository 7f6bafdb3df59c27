"""A disk in memory behind the interface of shmkv.wal.files.Files: it records, fails on demand and survives power cuts.

What a power cut may leave: of every file, what was synced, and of each 512-byte piece written since, all, nothing or
its first bytes; its new size or the old one; of every folder, the synced names, and of each name made, renamed or
removed since, the effect or not, each on its own.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shmkv.wal.cipher import Keyring
from shmkv.wal.files import Buffer, Files

SECTOR_BYTES = 512
# Two file systems.
ROOTS = ("/data", "/archive")


@dataclass
class Inode:
    """Content as processes see it, as it was last synced, and the writes in between."""

    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)


@dataclass
class Folder:
    """Names as processes see them, as last synced, and the changes in between: (new name or None, old name, inode)."""

    names: dict[str, int] = field(default_factory=dict)
    synced: dict[str, int] = field(default_factory=dict)
    pending: list[tuple[str, str, int]] = field(default_factory=list)


class MemoryDisk(Files):
    """`before` is called with every operation's name and path, and may raise OSError or PowerFailure."""

    def __init__(self, keys: Keyring | None = None) -> None:
        """keys: of the stores on it, unless they say others."""
        self.keys = keys
        self.inodes: dict[int, Inode] = {}
        self.folders: dict[str, Folder] = {root: Folder() for root in ROOTS}
        self.open_files: dict[int, tuple[int, str]] = {}  # inode and path
        self.before: Callable[[str, str], None] = lambda _operation, _path: None
        self._done: list[tuple[str, str]] = []
        self._next = 10

    # ---- the interface of Files -----------------------------------------------------------------------------

    def create(self, path: str) -> int:
        self._enter("create", path)
        folder, name = self._folder(path)
        if name in folder.names:
            raise FileExistsError(errno.EEXIST, "exists", path)
        inode = self._number()
        self.inodes[inode] = Inode()
        folder.names[name] = inode
        folder.pending.append(("add", name, inode))
        return self._descriptor(inode, path)

    def open(self, path: str) -> int:
        self._enter("open", path)
        return self._descriptor(self._find(path), path)

    def open_to_read(self, path: str) -> int:
        return self.open(path)

    def close(self, fd: int) -> None:
        del self.open_files[fd]

    def preallocate(self, fd: int, size_bytes: int) -> None:
        self._enter("preallocate", self._name_of(fd))
        inode = self._inode(fd)
        if size_bytes > len(inode.data):
            inode.data.extend(bytes(size_bytes - len(inode.data)))
            inode.pending.append((size_bytes, b""))

    def write_all(self, fd: int, pieces: Sequence[Buffer], offset: int) -> int:
        data = b"".join(pieces)
        self._enter("write", self._name_of(fd))
        inode = self._inode(fd)
        if len(inode.data) < offset + len(data):
            inode.data.extend(bytes(offset + len(data) - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.pending.append((offset, data))
        return len(data)

    def fdatasync(self, fd: int) -> None:
        inode = self._inode(fd)
        try:
            self._enter("sync", self._name_of(fd))
        except OSError:
            # As the kernel does: the pages count as clean from now on, and the disk never gets them.
            inode.pending.clear()
            raise
        # Only what is pending: what an earlier sync failed to bring there is never written by a later one.
        inode.synced = bytearray(_surviving_data(inode, all_kept))
        inode.pending.clear()

    def fsync(self, fd: int) -> None:
        self.fdatasync(fd)

    def fsync_dir(self, path: str) -> None:
        self._enter("sync_dir", path)
        folder = self.folders[path]
        folder.synced = dict(folder.names)
        folder.pending.clear()

    def rename(self, source: str, target: str) -> None:
        self._enter("rename", target)
        folder, old = self._folder(source)
        new = os.path.basename(target)
        inode = folder.names.pop(old)
        folder.names[new] = inode
        folder.pending.append(("rename", f"{old}/{new}", inode))
        for fd, (number, _) in self.open_files.items():
            if number == inode:
                self.open_files[fd] = (inode, target)

    def unlink(self, path: str) -> None:
        self._enter("unlink", path)
        folder, name = self._folder(path)
        inode = folder.names.pop(name)
        folder.pending.append(("remove", name, inode))

    def make_dir(self, path: str) -> None:
        self._enter("make_dir", path)
        if path not in self.folders:
            self.folders[path] = Folder()
            parent, name = self._folder(path)
            parent.names[name] = -1
            parent.pending.append(("add", name, -1))

    def is_file(self, path: str) -> bool:
        return path not in self.folders

    def names(self, path: str) -> list[str]:
        return sorted(self.folders[path].names)

    def exists(self, path: str) -> bool:
        parent, name = os.path.split(path)
        return parent in self.folders and name in self.folders[parent].names

    def size_bytes(self, path: str) -> int:
        return len(self.inodes[self._find(path)].data)

    def free_bytes(self, path: str) -> int:
        return 1 << 40

    def read_some(self, path: str, size_bytes: int) -> bytes:
        self._enter("read", path)
        return bytes(self.inodes[self._find(path)].data[:size_bytes])

    def read_into(self, fd: int, view: memoryview, offset: int) -> int:
        self._enter("read", self._name_of(fd))
        data = self._inode(fd).data[offset : offset + len(view)]
        view[: len(data)] = data
        return len(data)

    def drop_cache(self, fd: int) -> None:
        pass

    def map(self, path: str) -> memoryview:
        self._enter("map", path)
        return memoryview(bytes(self.inodes[self._find(path)].data))

    def lock_dir(self, path: str, timeout_s: float) -> int:
        return self._number()

    @property
    def operations(self) -> list[str]:
        """What was called so far: "operation name"."""
        return self.last_operations(len(self._done))

    def last_operations(self, count: int) -> list[str]:
        return [f"{operation} {os.path.basename(path)}" for operation, path in self._done[-count:]]

    # ---- for tests ------------------------------------------------------------------------------------------

    def content(self, path: str) -> bytearray:
        """The bytes of a file, to read or to damage."""
        return self.inodes[self._find(path)].data

    def put(self, path: str, data: bytes) -> None:
        """A synced file."""
        folder, name = self._folder(path)
        inode = self._number()
        self.inodes[inode] = Inode(bytearray(data), bytearray(data))
        folder.names[name] = folder.synced[name] = inode

    def copy(self) -> MemoryDisk:
        """The same disk after its processes were killed: page cache intact, nothing synced by that."""
        other = MemoryDisk(self.keys)
        other._next = self._next
        for number, inode in self.inodes.items():
            other.inodes[number] = Inode(bytearray(inode.data), bytearray(inode.synced), list(inode.pending))
        for path, folder in self.folders.items():
            other.folders[path] = Folder(dict(folder.names), dict(folder.synced), list(folder.pending))
        return other

    def after_power_cut(self, keep: Callable[[], float]) -> MemoryDisk:
        """What may be left; keep() of each unsynced effect: 0 = lost, 1 = kept, between = that part of a sector."""
        other = MemoryDisk(self.keys)
        other._next = self._next
        other.folders.clear()
        for path, folder in self.folders.items():
            names = _surviving_names(folder, keep)
            other.folders[path] = Folder(names, dict(names))
        for path in sorted(other.folders):
            parent, name = os.path.split(path)
            if path not in ROOTS and (parent not in other.folders or name not in other.folders[parent].names):
                del other.folders[path]
        for folder in other.folders.values():
            for number in folder.names.values():
                if number >= 0:
                    data = _surviving_data(self.inodes[number], keep)
                    other.inodes[number] = Inode(bytearray(data), bytearray(data))
        return other

    def fingerprint(self) -> int:
        """Equal for disks with equal names and contents."""
        return hash(
            tuple(
                (path, name, bytes(self.inodes[inode].data) if inode >= 0 else b"")
                for path, folder in sorted(self.folders.items())
                for name, inode in sorted(folder.names.items())
            )
        )

    def _enter(self, operation: str, path: str) -> None:
        self.before(operation, path)
        self._done.append((operation, path))

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _descriptor(self, inode: int, path: str) -> int:
        fd = self._number()
        self.open_files[fd] = (inode, path)
        return fd

    def _inode(self, fd: int) -> Inode:
        return self.inodes[self.open_files[fd][0]]

    def _name_of(self, fd: int) -> str:
        return self.open_files[fd][1]

    def _folder(self, path: str) -> tuple[Folder, str]:
        parent, name = os.path.split(path)
        if parent not in self.folders:
            raise FileNotFoundError(errno.ENOENT, "no such folder", parent)
        return self.folders[parent], name

    def _find(self, path: str) -> int:
        folder, name = self._folder(path)
        if name not in folder.names:
            raise FileNotFoundError(errno.ENOENT, "no such file", path)
        return folder.names[name]


def _surviving_names(folder: Folder, keep: Callable[[], float]) -> dict[str, int]:
    names = dict(folder.synced)
    for change, name, inode in folder.pending:
        if keep() < 0.5:
            continue
        if change == "add":
            names[name] = inode
        elif change == "remove" and names.get(name) == inode:
            del names[name]
        elif change == "rename":
            old, new = name.split("/")
            if names.get(old) == inode:
                del names[old]
            names[new] = inode
    return names


def _surviving_data(inode: Inode, keep: Callable[[], float]) -> bytes:
    data = bytearray(inode.synced)
    for offset, written in inode.pending:
        if not written:
            if keep() >= 0.5 and offset > len(data):
                data.extend(bytes(offset - len(data)))
            continue
        at = 0
        while at < len(written):
            size = min(SECTOR_BYTES - (offset + at) % SECTOR_BYTES, len(written) - at)
            part = written[at : at + round(size * min(1.0, keep()))]
            if part:
                data.extend(bytes(max(0, offset + at - len(data))))
                data[offset + at : offset + at + len(part)] = part
            at += size
    return bytes(data)


def all_kept() -> float:
    return 1.0


def none_kept() -> float:
    return 0.0


def some_kept(seed: object) -> Callable[[], float]:
    """Each effect kept, lost or torn, at random."""
    chance = random.Random(repr(seed))
    return lambda: chance.choice((0.0, 0.0, 1.0, 1.0, chance.random()))


class Fault:
    """Fails the Nth call (from 0) of these operations, once or for ever; set it as a disk's `before`."""

    def __init__(
        self, nth: int, *, operations: Sequence[str], code: int, for_ever: bool = False, path: str = ""
    ) -> None:
        self._left = nth
        self._operations = operations
        self._code = code
        self._for_ever = for_ever
        self._path = path
        self.hits = 0

    def __call__(self, operation: str, path: str) -> None:
        if operation not in self._operations or self._path not in path:
            return
        self._left -= 1
        if self._left == -1 or (self._for_ever and self._left < 0):
            self.hits += 1
            raise OSError(self._code, os.strerror(self._code), path)
