"""Settings of the kind of model, and of what only encoders and encoder-decoders have."""

from __future__ import annotations

from dataclasses import dataclass

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class KindConfig:
    """The part of `ModelConfig` that says what a model is made of."""

    model_family: str = flag(
        "--model-family",
        default="gpt",
        choices=("gpt",),
        help="kind of model",
    )
