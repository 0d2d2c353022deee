"""Index files: built once, found again by a hash of what they were built from.

A cache is a folder of `<hash>-<Class>-<split>-<name>.npy` and a `-description.txt`. Many processes
and nodes may want the same indices at the same time: one builds under a lock, the others wait and
load. Files appear under their names only when complete, and what is loaded is checked against the
sizes that the description implies, so that damage or a foreign file leads to a rebuild.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megacore.durable import published
from megacore.errors import DataError

_LOGGER = logging.getLogger("megacore.data")

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ArraySpec:
    """What a stored array must be: its dtype and shape, where None stands for any size."""

    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]

    def fits(self, array: NDArray[Any]) -> bool:
        """Whether an array is of this type and shape."""
        return (
            array.dtype == self.dtype
            and array.ndim == len(self.shape)
            and all(
                wanted in (None, size) for wanted, size in zip(self.shape, array.shape, strict=True)
            )
        )


@dataclass(frozen=True)
class IndexFiles:
    """The files of one set of indices.

    Attributes:
        directory: Folder of the cache.
        stem: What their names begin with: hash, class and split.
        description: Text that was hashed.
    """

    directory: Path
    stem: str
    description: str

    @staticmethod
    def describe(directory: Path, identity: Mapping[str, Any], split: str | None) -> IndexFiles:
        """Names for the indices of something.

        Args:
            directory: Folder of the cache.
            identity: Ordered mapping with "class" and all that the indices depend on.
            split: train, valid or test; None where only the hash tells the splits apart.
        """
        text = json.dumps(identity, indent=4)
        digest = hashlib.md5(text.encode("utf-8"), usedforsecurity=False).hexdigest()
        stem = f"{digest}-{identity['class']}" + (f"-{split}" if split else "")
        return IndexFiles(directory, stem, text)

    def path(self, name: str, suffix: str = ".npy") -> Path:
        """File of the array `name`."""
        return self.directory / f"{self.stem}-{name}{suffix}"

    def load_or_build(
        self,
        specs: Mapping[str, ArraySpec],
        build: Callable[[], Arrays],
        *,
        may_build: bool = True,
    ) -> Arrays:
        """The arrays, mapped from their files; built and written first if need be.

        Args:
            specs: Array name -> what it must be.
            build: Makes the arrays.
            may_build: False: another process has built them, so that not seeing them is an error.

        Raises:
            DataError: The folder cannot be written, the disk is full, or (with may_build False)
                the files are not there.
        """
        arrays = self._load(specs)
        if arrays is not None:
            return arrays
        if not may_build:
            raise DataError(
                f"{self.directory}: this process does not see the index files {self.stem}-* that "
                "another one has written; name a folder that all nodes share with "
                "--data-cache-path"
            )
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._lock():
                arrays = self._load(specs)  # another process may have been faster
                if arrays is None:
                    self._write(build())
                    arrays = self._load(specs)
        except OSError as error:
            raise DataError(
                f"cannot write dataset indices to {self.directory}: {error.strerror or error}; "
                "name another folder with --data-cache-path"
            ) from None
        if arrays is None:
            raise DataError(
                f"dataset indices just written to {self.directory} cannot be read back; "
                "name a folder on another disk with --data-cache-path"
            )
        return arrays

    def _load(self, specs: Mapping[str, ArraySpec]) -> Arrays | None:
        try:
            text = self.path("description", ".txt").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            text = str(error)
        if text != self.description:
            _LOGGER.warning(
                "%s is built again: its description differs", self.directory / self.stem
            )
            return None
        arrays: Arrays = {}
        for name, spec in specs.items():
            path = self.path(name)
            try:
                array = np.load(
                    path, mmap_mode=None if 0 in spec.shape else "r", allow_pickle=False
                )
            except FileNotFoundError:
                return None
            except (OSError, ValueError, EOFError) as error:
                _LOGGER.warning("%s cannot be used and is built again: %s", path, error)
                return None
            if not spec.fits(array):
                _LOGGER.warning(
                    "%s is built again: expected %s %s, found %s %s",
                    path, spec.dtype, list(spec.shape), array.dtype, list(array.shape),
                )  # fmt: skip
                return None
            arrays[name] = array
        return arrays

    def _write(self, arrays: Arrays) -> None:
        for leftover in self.directory.glob(f".{self.stem}-*.tmp"):
            leftover.unlink(missing_ok=True)  # of a process that was killed
        # The description goes last: it stands for a complete set.
        for name, array in arrays.items():
            with published(self.path(name)) as file:
                np.save(file, array, allow_pickle=False)
        with published(self.path("description", ".txt")) as file:
            file.write(self.description.encode("utf-8"))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The lock belongs to the open file, so it vanishes with its process. The empty file stays:
        # removing it would let two processes lock two different files.
        with self.path("build", ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                # Without locks several processes may do the same work; each file still appears
                # whole, and with the same content.
                if error.errno not in _NO_LOCKS:
                    raise
            yield
