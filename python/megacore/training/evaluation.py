"""Loss on the validation or the test set."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from megacore.data import Batch
from megacore.models.gpt import GPTModel
from megacore.training.step import LOSS_KEY, next_batch, token_loss_sum


@torch.no_grad()
def evaluate(
    model: GPTModel,
    batches: Iterator[Batch],
    *,
    num_microbatches: int,
    device: torch.device,
) -> dict[str, float]:
    """Mean loss per token over `num_microbatches` micro-batches.

    The model is back in training mode afterwards, and no random number was drawn.

    Args:
        model: The model.
        batches: Source of micro-batches.
        num_microbatches: How many to use: iterations * full global batch / micro-batch.
        device: Where the model is.

    Returns:
        Loss name -> mean.

    Raises:
        DataError: The source has too few micro-batches.
    """
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    tokens = 0.0
    model.eval()
    try:
        for _ in range(num_microbatches):
            batch, count = next_batch(batches, device)
            loss_sum += token_loss_sum(model, batch).double()
            tokens += count
    finally:
        model.train()
    return {LOSS_KEY: loss_sum.item() / max(tokens, 1.0)}
