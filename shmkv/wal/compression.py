"""Compression of blocks: none, or zstd by the optional package zstandard.

Why here: the package is an extra, and nothing but this file may need it.

Invariants:
  I1  Nothing is imported before a compressed file is written or read.
  I2  unpack never makes more bytes than were announced, whatever the compressed bytes say.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from shmkv.errors import IncompatibleStore
from shmkv.wal.files import Buffer

if TYPE_CHECKING:
    import zstandard

NO_COMPRESSION, ZSTD = 0, 1
COMPRESSIONS = {"none": NO_COMPRESSION, "zstd": ZSTD}
# Level 1 keeps pace with the disk on one core; 3, the usual one, saves a few percent and takes twice the time.
LEVEL = 1


class Packer:
    """Compresses and decompresses single blocks; for one thread."""

    def __init__(self) -> None:
        require_zstd()
        import zstandard

        self._zstandard = zstandard
        self._compressor: zstandard.ZstdCompressor | None = None
        self._decompressor: zstandard.ZstdDecompressor | None = None

    def pack(self, data: Buffer) -> bytes:
        if self._compressor is None:
            self._compressor = self._zstandard.ZstdCompressor(level=LEVEL)
        return self._compressor.compress(data)

    def unpack(self, data: Buffer, raw_bytes: int) -> bytes:
        """Raises ValueError if it is not one whole frame of raw_bytes."""
        try:
            found = self._zstandard.frame_content_size(data)
            if found != raw_bytes:
                raise ValueError(f"its frame announces {found} bytes instead of {raw_bytes}")
            if self._decompressor is None:
                self._decompressor = self._zstandard.ZstdDecompressor()
            return self._decompressor.decompress(data, read_across_frames=False, allow_extra_data=False)
        except self._zstandard.ZstdError as problem:
            raise ValueError(str(problem)) from problem


def packer_of(compression: int) -> Packer | None:
    """What a file with this number in its header needs. Raises IncompatibleStore if the package is missing."""
    return None if compression == NO_COMPRESSION else Packer()


def require_zstd() -> None:
    """Raises IncompatibleStore if zstandard is not installed; does not import it."""
    if importlib.util.find_spec("zstandard") is None:
        raise IncompatibleStore(
            "compression zstd needs the package zstandard, which is not installed: run `pip install shmkv[zstd]`, or "
            "set snapshot_compression to none"
        )
