"""Sequences of packed conversations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from megacore.data.chat.packing import Packing, pack
from megacore.data.chat.tokens import TokenizedChats
from megacore.errors import DataError


@dataclass(frozen=True)
class Texts:
    """Texts of several files, or the part of them that belongs to a split.

    Attributes:
        files: The files.
        file: int64 [texts], number of the file of each.
        index: int64 [texts], its number in the file.
    """

    files: Sequence[TokenizedChats]
    file: NDArray[np.int64]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.file)

    def read(self, text: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Ids and what is learned of a text."""
        source, index = self.files[self.file[text]], self.index[text]
        part = slice(source.bounds[index], source.bounds[index + 1])
        return source.tokens[part], source.learned[part]

    def where(self, text: int) -> str:
        """File and line of a text."""
        source = self.files[self.file[text]]
        return f"{source.path}:{source.lines[self.index[text]]}"


class PackedDataset:
    """Samples of S tokens, each of whole texts one after the other and padding at the end.

    A text of n tokens takes n - 1 positions: its last token is predicted, but predicts nothing.
    Positions begin at 0 in each text, and attention stays inside of it. A text that is too long
    keeps its first S + 1 tokens; one in which nothing is left to learn then is left out.

    Args:
        texts: What to pack.
        name: For messages.
        num_samples: How many are wanted at least, in as many passes as it takes; None for one.
        sequence_length: S.
        seed: Of the shuffles, one for each pass.
        overlong: What happens to texts that are too long: "truncate", "drop" or "refuse".

    Attributes:
        num_epochs: Passes over the texts.
        num_cut: Texts that lost their end.
        num_dropped: Texts that were left out.

    Raises:
        DataError: There is no text that can be used, or one is too long and that is refused.
    """

    def __init__(
        self,
        texts: Texts,
        *,
        name: str,
        num_samples: int | None,
        sequence_length: int,
        seed: int,
        overlong: str = "truncate",
    ) -> None:
        self.name = name
        self.sequence_length = sequence_length
        self._texts = texts
        self.num_cut = 0
        usable = [text for text in range(len(texts)) if self._is_usable(text, overlong)]
        self.num_dropped = len(texts) - len(usable)
        if not usable:
            raise DataError(
                f"{name}: of {len(texts)} texts none has an answer within {sequence_length} tokens"
            )
        self._usable = np.array(usable, dtype=np.int64)
        lengths = np.array([self._length(text) for text in usable], dtype=np.int64)
        self._epochs: list[Packing] = []
        total = 0
        while not self._epochs or total < (num_samples or 0):
            epoch = len(self._epochs)
            self._epochs.append(pack(lengths, room=sequence_length, seed=seed, epoch=epoch))
            total += len(self._epochs[-1])
        self.fill = float(lengths.sum()) / (len(self._epochs[0]) * sequence_length)
        self._ends = np.cumsum([len(packing) for packing in self._epochs])

    @property
    def num_epochs(self) -> int:
        """Passes over the texts."""
        return len(self._epochs)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _is_usable(self, text: int, overlong: str) -> bool:
        ids, learned = self._texts.read(text)
        is_long = len(ids) - 1 > self.sequence_length
        if is_long and overlong == "refuse":
            raise DataError(
                f"{self._texts.where(text)}: has {len(ids)} tokens, a sequence only "
                f"{self.sequence_length} (--sft-overlong says what else can happen)"
            )
        if is_long and overlong == "drop":
            return False
        found = bool(learned[1 : self.sequence_length + 1].any())
        self.num_cut += is_long and found
        return found

    def _length(self, text: int) -> int:
        return min(len(self._texts.read(text)[0]) - 1, self.sequence_length)

    def fill_rows(
        self,
        samples: NDArray[np.int64],
        *,
        vocab_size: int,
        tokens: NDArray[np.int64],
        labels: NDArray[np.int64],
        loss_mask: NDArray[np.float32],
        position_ids: NDArray[np.int64],
    ) -> NDArray[np.int32]:
        """Fills a batch.

        Args:
            samples: int64 [b] sample numbers.
            vocab_size: Every id must be smaller.
            tokens: int64 [b, S], written; 0 where there is padding.
            labels: int64 [b, S], written.
            loss_mask: float32 [b, S], written: 1 where the next token is learned.
            position_ids: int64 [b, S], written.

        Returns:
            int32 [n + 1] bounds of the texts, and of the padding, in the b * S flattened tokens.

        Raises:
            DataError: An id is not in the vocabulary.
        """
        bounds = [0]
        for array in (tokens, labels, loss_mask):
            array.fill(0)
        for row, sample in enumerate(samples.tolist()):
            end = 0
            for text in self._texts_of(sample):
                ids, learned = self._texts.read(text)
                size = self._length(text)
                part = slice(end, end + size)
                tokens[row, part], labels[row, part] = ids[:size], ids[1 : size + 1]
                loss_mask[row, part] = learned[1 : size + 1]
                position_ids[row, part] = np.arange(size)
                largest = int(ids.max())
                if largest >= vocab_size:
                    raise DataError(
                        f"{self._texts.where(text)}: token id {largest} is not in the vocabulary "
                        f"of {vocab_size}"
                    )
                end += size
                bounds.append(row * self.sequence_length + end)
            if end < self.sequence_length:
                position_ids[row, end:] = np.arange(self.sequence_length - end)
                bounds.append((row + 1) * self.sequence_length)
        return np.array(bounds, dtype=np.int32)

    def _texts_of(self, sample: int) -> list[int]:
        epoch = int(np.searchsorted(self._ends, sample, side="right"))
        packing = self._epochs[epoch]
        index = sample - (int(self._ends[epoch - 1]) if epoch else 0)
        chosen = packing.texts[packing.bounds[index] : packing.bounds[index + 1]]
        found: list[int] = self._usable[chosen].tolist()
        return found
