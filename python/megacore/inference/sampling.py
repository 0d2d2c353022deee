"""Choosing the next token from logits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megacore.errors import UsageError

_MAX_TEMPERATURE = 100.0


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How text is continued.

    Attributes:
        tokens_to_generate: Most tokens added to a prompt; 0 only scores the prompt.
        temperature: Logits are divided by it; in (0, 100].
        top_k: Only the k most likely tokens can be drawn; 1 is greedy, 0 no limit.
        top_p: Only the most likely tokens up to the one whose cumulative probability crosses p;
            0 no limit. Excludes `top_k`.
        seed: Seed of the draws; together with a prompt it determines that prompt's continuation,
            whatever other prompts are in the batch.
        stop: Texts that end a continuation; they are not part of it.
        stop_at_eod: Whether the end-of-document token ends a continuation.
        log_probs: Return the log probability of every token, before temperature and limits.
    """

    tokens_to_generate: int = 30
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0
    seed: int = 1234
    stop: tuple[str, ...] = ()
    stop_at_eod: bool = True
    log_probs: bool = False

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.top_k == 1

    def check(self) -> None:
        """Raise UsageError that names every setting that cannot be used."""
        faults = "\n".join(self._faults())
        if faults:
            raise UsageError(faults)

    def _faults(self) -> Iterator[str]:
        if self.tokens_to_generate < 0:
            yield f"tokens_to_generate must be at least 0, found {self.tokens_to_generate}"
        if self.tokens_to_generate == 0 and not self.log_probs:
            yield "tokens_to_generate 0 only scores the prompt and needs log_probs"
        if not 0.0 < self.temperature <= _MAX_TEMPERATURE:
            yield (
                f"temperature must be in (0, {_MAX_TEMPERATURE:g}], found {self.temperature:g}"
                " (for the most likely token always, use greedy or top_k 1)"
            )
        if self.top_k < 0:
            yield f"top_k must be at least 0, found {self.top_k}"
        if not 0.0 <= self.top_p <= 1.0:
            yield f"top_p must be in [0, 1], found {self.top_p:g}"
        if self.top_k > 0 and self.top_p > 0.0:
            yield f"top_k and top_p exclude each other, found {self.top_k} and {self.top_p:g}"
        if "" in self.stop:
            yield "a stop text must not be empty"


def probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """What tokens are drawn from.

    Args:
        logits: [B, V] of the vocabulary without padding, any floating dtype.
        params: Temperature and limits.

    Returns:
        [B, V] float32 (float64 for float64), each row sums to 1.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    scaled = wide / params.temperature
    if 0 < params.top_k < scaled.shape[1]:
        smallest_kept = scaled.topk(params.top_k, dim=1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest_kept, float("-inf"))
    result = scaled.softmax(1)
    if 0.0 < params.top_p < 1.0:
        ordered, order = result.sort(dim=1, descending=True, stable=True)
        before = ordered.cumsum(1) - ordered
        # The token that crosses p stays, and so does the best one, even when it alone crosses.
        dropped = before > params.top_p
        dropped[:, 0] = False
        result = result.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), 0.0)
        result = result / result.sum(1, keepdim=True)
    return result


def prompt_generators(prompts: Sequence[Sequence[int]], seed: int) -> list[torch.Generator]:
    """One random generator per prompt, from the seed, its tokens, and how often it came before.

    So a continuation does not depend on the rest of the batch, and equal prompts differ.

    Args:
        prompts: Token ids.
        seed: Seed of the request.
    """
    seen: dict[tuple[int, ...], int] = {}
    generators = []
    for prompt in prompts:
        key = tuple(prompt)
        occurrence = seen[key] = seen.get(key, -1) + 1
        digest = hashlib.sha256(repr((seed, occurrence, key)).encode()).digest()
        # Generator seeds are signed 64-bit.
        state = int.from_bytes(digest[:8], "little") >> 1
        generators.append(torch.Generator().manual_seed(state))
    return generators


def choose(logits: Tensor, params: SamplingParams, generators: Sequence[torch.Generator]) -> Tensor:
    """The next token of every row.

    Args:
        logits: [B, V] of the vocabulary without padding.
        params: How to choose.
        generators: One per row; each advances by one draw unless greedy.

    Returns:
        Token ids [B] int64.
    """
    if params.is_greedy:
        return logits.argmax(1)
    weights = probabilities(logits, params).double()
    draws = torch.cat([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    cumulative = weights.cumsum(1)
    # First token whose cumulative weight exceeds the draw: its own weight is positive.
    target = draws.to(logits.device)[:, None] * cumulative[:, -1:]
    chosen = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return chosen.clamp_(max=logits.shape[1] - 1)
