"""File-system steps that survive a crash; see `megacore.durable`."""

from megacore.durable import (
    CHUNK_BYTES,
    created,
    free_bytes,
    replace_file,
    sync_directory,
    write_all,
    write_file,
)

__all__ = [
    "CHUNK_BYTES",
    "created",
    "free_bytes",
    "replace_file",
    "sync_directory",
    "write_all",
    "write_file",
]
