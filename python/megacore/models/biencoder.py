"""Two encoders that put questions and texts into one space (Lee et al. 2019, section 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from megacore.layers.linear import Linear
from megacore.models.bert import BertModel
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.staged import StagedModel


class Tower(nn.Module):
    """One encoder: the first token of its last layer, or a projection of it.

    Args:
        config: Architecture.
        projection: Width of the projection; 0 for none.
        padded_vocab_size: Rows of the word embedding.
        recompute: Which activations are recomputed in backward.
        dtype: Of parameters and activations.
        device: Of the parameters.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        projection: int,
        padded_vocab_size: int,
        recompute: RecomputeConfig | None,
        dtype: torch.dtype,
        device: torch.device | str | None,
    ) -> None:
        super().__init__()
        self.language_model = BertModel(
            config,
            padded_vocab_size=padded_vocab_size,
            recompute=recompute,
            dtype=dtype,
            device=device,
        )
        # The pretraining heads and the pooler are not used; the last norm is.
        self.language_model.drop_end()
        self.projection_enc: Linear | None = None
        if projection:
            width = self.language_model.spec.hidden_size
            self.projection_enc = Linear(width, projection, bias=True, dtype=dtype, device=device)

    def forward(self, tokens: Tensor, lengths: Tensor | None) -> Tensor:
        """Vectors [B, H] or [B, projection] of rows of `tokens` [B, S], padded to `lengths`."""
        first = self.language_model.encode(tokens, lengths, types=torch.zeros_like(tokens))[:, 0]
        return first if self.projection_enc is None else self.projection_enc(first)


class BiencoderModel(StagedModel):
    """A tower for questions and one for blocks, or one for both.

    Args:
        config: Architecture of each tower.
        padded_vocab_size: Rows of the word embeddings.
        projection: Width of the projections; 0 for none.
        shared: One tower, `shared_model`, instead of `query_model` and `context_model`.
        recompute: See `BertModel`, as the arguments that follow.

    Raises:
        ConfigError: A needed size is missing or the sizes do not fit together.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        padded_vocab_size: int,
        projection: int = 0,
        shared: bool = False,
        recompute: RecomputeConfig | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        fp16_lm_cross_entropy: bool = False,
    ) -> None:
        super().__init__()

        def tower() -> Tower:
            return Tower(
                config,
                projection=projection,
                padded_vocab_size=padded_vocab_size,
                recompute=recompute,
                dtype=dtype,
                device=device,
            )

        self.shared_model = tower() if shared else None
        self.query_model = None if shared else tower()
        self.context_model = None if shared else tower()
        self.dtype = dtype
        self.spec = self.query_tower.language_model.spec
        self.embedding = None
        self.output_layer = None

    @property
    def query_tower(self) -> Tower:
        """What encodes questions."""
        tower = self.query_model if self.shared_model is None else self.shared_model
        assert tower is not None
        return tower

    @property
    def context_tower(self) -> Tower:
        """What encodes blocks of text."""
        tower = self.context_model if self.shared_model is None else self.shared_model
        assert tower is not None
        return tower

    @property
    def towers(self) -> list[Tower]:
        """Each tower once."""
        both = [self.query_tower, self.context_tower]
        return both[:1] if both[0] is both[1] else both

    def forward(
        self,
        query_tokens: Tensor,
        query_lengths: Tensor,
        context_tokens: Tensor,
        context_lengths: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Vectors of questions and of blocks, [B, H] each in float32."""
        query = self.query_tower(query_tokens, query_lengths)
        context = self.context_tower(context_tokens, context_lengths)
        return query.float(), context.float()
