"""An encoder that chooses one of several texts."""

from __future__ import annotations

from torch import Tensor

from megacore.models.classification import PooledEncoder
from megacore.models.config import ModelConfig


class MultipleChoiceModel(PooledEncoder):
    """A BERT with `multichoice_head` [1, H]; arguments as `PooledEncoder`.

    Args:
        config: Architecture.
        num_alternatives: Rows that belong together, one after the other.
        settings: The rest.
    """

    def __init__(self, config: ModelConfig, *, num_alternatives: int, **settings: object) -> None:
        super().__init__(
            config,
            head="multichoice_head",
            num_outputs=1,
            **settings,  # type: ignore[arg-type]
        )
        self._num_alternatives = num_alternatives

    def forward(  # type: ignore[override]
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        *,
        types: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> Tensor:
        """Logits [B / k, k] of the alternatives, which are rows of `tokens` [B, S].

        A part of a model without the head gives hidden states.
        """
        scores = self.scores(tokens, lengths, types=types, hidden=hidden)
        return scores.view(-1, self._num_alternatives) if self.has_end else scores
