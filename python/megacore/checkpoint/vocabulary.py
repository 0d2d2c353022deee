"""Weights with one row per vocabulary entry, whose padding may differ between runs."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY_WEIGHTS = ("word_embeddings.weight", "output_layer.weight", "output_layer.bias")


@dataclass(frozen=True)
class VocabularyRows:
    """Which tensors have vocabulary rows, and how many of their rows mean something.

    The number of rows is the vocabulary rounded up for the hardware and the layout of a run; it is
    not a property of the trained model. So rows are cut or added on load.

    Attributes:
        size: True vocabulary size; rows after it are padding.
        suffixes: Ends of the names of such tensors, also with "exp_avg." and so on before them.
    """

    size: int
    suffixes: tuple[str, ...] = VOCABULARY_WEIGHTS

    def fits(self, name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
        """Whether a stored tensor differs from the wanted one in padding rows only."""
        return (
            name.endswith(self.suffixes)
            and len(stored) == len(wanted) > 0
            and stored[1:] == wanted[1:]
            and min(stored[0], wanted[0]) >= self.size
        )

    def note(self, stored: int, wanted: int) -> str:
        """What was done to a weight with `stored` rows, for the log.

        Rows that both have were copied; further rows of the run kept their values.
        """
        return f"{stored} -> {wanted} rows, vocabulary of {self.size} kept"
