"""What a checkpoint of adapters says about the model that they belong to.

Such a checkpoint holds the low-rank adapters only. Its settings name the checkpoint of the base
model, and an identity of it, so that adapters are never put on other weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacore.checkpoint import layout
from megacore.errors import CheckpointError

BASE_PATH, BASE_IDENTITY = "lora_base_path", "lora_base_identity"
# Larger files hold tensors; their checksums are in the small ones.
_READ_BYTES = 1 << 20


def holds_adapters(arguments: Mapping[str, Any]) -> bool:
    """Whether a checkpoint with these settings holds adapters only.

    Args:
        arguments: Its "args".
    """
    return isinstance(arguments.get(BASE_IDENTITY), str)


def base_arguments(base: Path) -> dict[str, str]:
    """What adapters of a base model write into their "args".

    Args:
        base: Directory of the base model's checkpoint (not of the one that holds several).
    """
    return {BASE_PATH: str(base.resolve()), BASE_IDENTITY: identity(base)}


def identity(checkpoint: Path) -> str:
    """Tells one checkpoint from another: hexadecimal SHA-256.

    Of names and sizes of all files, and of the contents of the small ones, which hold the
    checksums of the large ones; so it costs next to nothing.

    Args:
        checkpoint: Its directory.

    Raises:
        CheckpointError: A file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted(p for p in checkpoint.rglob("*") if p.is_file()):
            size = path.stat().st_size
            digest.update(f"{path.relative_to(checkpoint).as_posix()}\0{size}\0".encode())
            if size <= _READ_BYTES:
                digest.update(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{checkpoint}: cannot be read: {error}") from error
    return digest.hexdigest()


def find_base(arguments: Mapping[str, Any], adapters: Path, *, given: str | None = None) -> Path:
    """The checkpoint of the base model of some adapters.

    Args:
        arguments: The "args" of the adapters' checkpoint.
        adapters: Where that is, for messages.
        given: Directory that holds it, when it is not where it was.

    Raises:
        CheckpointError: It is not there, or it is not the one that the adapters were trained on.
    """
    recorded = str(arguments.get(BASE_PATH))
    found: Path | None = Path(recorded)
    if given is not None:
        found = layout.find_checkpoint(given)
        if found is None:
            raise CheckpointError(f"{given}: no checkpoint found there")
    elif not Path(recorded).is_dir():
        raise CheckpointError(
            f"{adapters} holds adapters of the model that was in {recorded}, where nothing is now: "
            "name its directory (--pretrained-checkpoint DIR)"
        )
    assert found is not None
    if identity(found) != arguments.get(BASE_IDENTITY):
        raise CheckpointError(
            f"{adapters} holds adapters of another base model than {found} (they were trained on "
            f"what was in {recorded})"
        )
    return found
