"""Reading plain and compressed files as one stream of bytes, in bounded memory."""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megacore.errors import DataError

# Compressed bytes handed to a decompressor at once: small, because a few of them may stand for
# megabytes of text.
_COMPRESSED_BLOCK = 16 * 1024
_PLAIN_BLOCK = 1024 * 1024


def _zstd_decompressor() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor().decompressobj()


def _decompressors() -> dict[str, tuple[str, Callable[[], Any]]]:
    return {
        ".gz": ("gzip", lambda: zlib.decompressobj(wbits=31)),
        ".zst": ("zstd", _zstd_decompressor),
        ".bz2": ("bzip2", bz2.BZ2Decompressor),
        ".xz": ("xz", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ)),
    }


def bare_suffix(path: str) -> str:
    """Extension of a file without that of its compression: ".jsonl" of "a.jsonl.gz"."""
    name = Path(path)
    if name.suffix.lower() in _decompressors():
        name = name.with_suffix("")
    return name.suffix.lower()


class InputFile:
    """The decompressed bytes of a file, block by block.

    Attributes:
        path: The file.
        position: Bytes of the file that were read so far (compressed ones, if it is compressed).
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.position = 0

    def blocks(self) -> Iterator[bytes]:
        """Non-empty blocks of the content, in order.

        Raises:
            DataError: The file cannot be read, is damaged, or ends in the middle.
        """
        codec = _decompressors().get(Path(self.path).suffix.lower())
        if codec is None:
            yield from self._raw_blocks(_PLAIN_BLOCK)
        else:
            yield from self._decompressed(*codec)

    def _raw_blocks(self, size: int) -> Iterator[bytes]:
        try:
            with open(self.path, "rb", buffering=0) as file:
                while block := file.read(size):
                    self.position += len(block)
                    yield block
        except OSError as error:
            raise DataError(f"{self.path}: cannot read: {error.strerror or error}") from error

    def _decompressed(self, codec: str, new_decompressor: Callable[[], Any]) -> Iterator[bytes]:
        import zstandard

        damage = (zlib.error, lzma.LZMAError, zstandard.ZstdError, OSError, EOFError)
        decompressor = new_decompressor()
        fed = False  # whether the current member has begun
        for block in self._raw_blocks(_COMPRESSED_BLOCK):
            while block:
                if decompressor.eof:
                    # gzip and zstd files may be several members, one after the other; gzip may
                    # be padded with zeros.
                    block = block.lstrip(b"\0") if codec == "gzip" else block
                    if not block:
                        break
                    decompressor, fed = new_decompressor(), False
                try:
                    text = decompressor.decompress(block)
                except damage as error:
                    raise DataError(
                        f"{self.path}: damaged {codec} data before byte {self.position}: {error}"
                    ) from error
                fed = True
                block = decompressor.unused_data if decompressor.eof else b""
                if text:
                    yield text
        if not decompressor.eof and (fed or self.position == 0):
            found = "is empty" if self.position == 0 else "ends in the middle of the data"
            raise DataError(f"{self.path}: the {codec} file {found}")
