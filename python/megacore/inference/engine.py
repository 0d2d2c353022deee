"""Generation from Python: batches of prompts of any lengths, one token of each at a time.

A batch is padded on the right: every row keeps the positions and the attention it has alone. The
prompts are read in one pass, then each pass adds one token per row at the row's own length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError, UsageError
from megacore.inference.sampling import SamplingParams, choose, prompt_generators
from megacore.inference.text import TextStream
from megacore.layers.kv_cache import KVCache
from megacore.models.gpt import GPTModel

OnText = Callable[[int, str], None]


@dataclass(kw_only=True)
class Generation:
    """A prompt and its continuation.

    Attributes:
        prompt: As given.
        text: The continuation, without end-of-document token and stop text.
        prompt_tokens: Ids of the prompt.
        tokens: Ids of the continuation; those of a stop text are included.
        finish_reason: "length", "eod" or "stop".
        log_probs: Log probability of every token of the continuation, if asked for.
        prompt_log_probs: The same of every prompt token but the first.
    """

    prompt: str
    text: str = ""
    prompt_tokens: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    log_probs: list[float] | None = None
    prompt_log_probs: list[float] | None = None


@dataclass
class _Row:
    """A prompt while it is being continued."""

    index: int
    result: Generation
    stream: TextStream
    generator: torch.Generator
    finished: bool = False


class Engine:
    """A model and its tokenizer, ready to generate.

    Args:
        model: Its mode is left alone; dropout is never applied.
        tokenizer: Ids beyond its vocabulary (padding rows) are never generated.
        max_length: Most tokens of prompt and continuation; default the learned positions.
        max_batch_size: Prompts that are continued at the same time.

    Raises:
        UsageError: The vocabulary of the tokenizer is larger than the model's.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: Tokenizer,
        *,
        max_length: int | None = None,
        max_batch_size: int = 32,
    ) -> None:
        if tokenizer.vocab_size > model.padded_vocab_size:
            raise UsageError(
                f"the tokenizer has {tokenizer.vocab_size} ids, "
                f"the model only {model.padded_vocab_size} (another tokenizer was trained with)"
            )
        if max_batch_size < 1:
            raise UsageError(f"max_batch_size must be at least 1, found {max_batch_size}")
        self._model = model
        self._tokenizer = tokenizer
        self._max_batch_size = max_batch_size
        limits = [limit for limit in (max_length, model.max_positions) if limit is not None]
        self._max_length = min(limits, default=None)
        self._device = next(model.parameters()).device
        try:
            self._eod: int | None = tokenizer.eod
        except DataError:
            self._eod = None

    def generate(
        self, prompts: Sequence[str], params: SamplingParams, *, on_text: OnText | None = None
    ) -> list[Generation]:
        """Continue every prompt.

        Args:
            prompts: Texts; an empty one begins a document.
            params: How to continue them.
            on_text: Called with the index of a prompt and the next piece of its continuation,
                which always ends at a whole character.

        Returns:
            One result per prompt, in order.

        Raises:
            UsageError: A parameter cannot be used, or a prompt is too long.
        """
        params.check()
        tokens = [self._tokens_of(prompt) for prompt in prompts]
        for index, ids in enumerate(tokens):
            self._check_length(index, len(ids), params)
        generators = prompt_generators(tokens, params.seed)
        rows = [
            _Row(
                index,
                Generation(prompt=prompt, prompt_tokens=ids),
                TextStream(self._tokenizer.detokenize, ids, params.stop),
                generator,
            )
            for index, (prompt, ids, generator) in enumerate(
                zip(prompts, tokens, generators, strict=True)
            )
        ]
        was_training = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode():
                for first in range(0, len(rows), self._max_batch_size):
                    batch = rows[first : first + self._max_batch_size]
                    self._continue(batch, params, on_text)
        finally:
            self._model.train(was_training)
        return [row.result for row in rows]

    def _tokens_of(self, prompt: str) -> list[int]:
        ids = list(self._tokenizer.tokenize(prompt))
        if ids:
            return ids
        if self._eod is None:
            raise UsageError(
                "an empty prompt needs a tokenizer with an end-of-document token to begin with"
            )
        return [self._eod]

    def _check_length(self, index: int, length: int, params: SamplingParams) -> None:
        total = length + params.tokens_to_generate
        if self._max_length is not None and total > self._max_length:
            raise UsageError(
                f"prompt {index + 1}: {length} tokens and {params.tokens_to_generate} to generate "
                f"are {total}, the model has {self._max_length} positions"
            )

    def _continue(self, rows: list[_Row], params: SamplingParams, on_text: OnText | None) -> None:
        longest = max(len(row.result.prompt_tokens) for row in rows)
        cache = KVCache(
            self._model.spec,
            batch_size=len(rows),
            capacity=longest + max(params.tokens_to_generate, 1),
            dtype=self._model.dtype,
            device=self._device,
        )
        logits = self._read_prompts(rows, longest, cache, params)
        for step in range(params.tokens_to_generate):
            logits = logits[:, : self._tokenizer.vocab_size]
            chosen = choose(logits, params, [row.generator for row in rows])
            self._record(rows, chosen, logits, params, on_text)
            active = [place for place, row in enumerate(rows) if not row.finished]
            if not active or step == params.tokens_to_generate - 1:
                break
            # Rows are dropped once half are finished: each time costs a copy of the cache.
            if 2 * len(active) <= len(rows):
                cache.keep_rows(active)
                rows = [rows[place] for place in active]
                chosen = chosen[active]
            logits = self._model(chosen[:, None], cache=cache)[:, 0]
            cache.advance([1] * len(rows))
        for row in rows:
            self._finish(row, "length", on_text)

    def _read_prompts(
        self, rows: list[_Row], longest: int, cache: KVCache, params: SamplingParams
    ) -> Tensor:
        """Logits [B, V] behind every prompt."""
        lengths = [len(row.result.prompt_tokens) for row in rows]
        padded = [row.result.prompt_tokens + [0] * (longest - len(row.result.prompt_tokens))
                  for row in rows]  # fmt: skip
        tokens = torch.tensor(padded, dtype=torch.int64, device=self._device)
        last = torch.tensor(lengths, device=self._device) - 1
        if not params.log_probs:
            logits = self._model.last_logits(tokens, last, cache=cache)
            cache.advance(lengths)
            return logits
        every = self._model(tokens, cache=cache)
        cache.advance(lengths)
        scores = self._log_probs(every[:, :-1, : self._tokenizer.vocab_size])
        scores = scores.gather(2, tokens[:, 1:, None])[:, :, 0]
        for row, length, values in zip(rows, lengths, scores.tolist(), strict=True):
            row.result.prompt_log_probs = values[: length - 1]
            row.result.log_probs = []
        return every[torch.arange(len(rows), device=self._device), last]

    def _record(
        self,
        rows: list[_Row],
        chosen: Tensor,
        logits: Tensor,
        params: SamplingParams,
        on_text: OnText | None,
    ) -> None:
        scores = None
        if params.log_probs:
            scores = self._log_probs(logits).gather(1, chosen[:, None])[:, 0].tolist()
        for place, token in enumerate(chosen.tolist()):
            row = rows[place]
            if row.finished:
                continue
            if params.stop_at_eod and token == self._eod:
                self._finish(row, "eod", on_text)
                continue
            row.result.tokens.append(token)
            if scores is not None and row.result.log_probs is not None:
                row.result.log_probs.append(scores[place])
            self._emit(row, row.stream.add(token), on_text)
            if row.stream.stopped:
                self._finish(row, "stop", on_text)

    @staticmethod
    def _log_probs(logits: Tensor) -> Tensor:
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return wide.log_softmax(-1)

    def _finish(self, row: _Row, reason: str, on_text: OnText | None) -> None:
        if row.finished:
            return
        row.finished = True
        self._emit(row, row.stream.finish(), on_text)
        row.result.finish_reason = "stop" if row.stream.stopped else reason
        row.result.text = row.stream.text

    @staticmethod
    def _emit(row: _Row, piece: str, on_text: OnText | None) -> None:
        if piece and on_text is not None:
            on_text(row.index, piece)


def generate(
    model: GPTModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    params: SamplingParams | None = None,
    *,
    on_text: OnText | None = None,
) -> list[Generation]:
    """Continue `prompts` with `model`; see `Engine`."""
    return Engine(model, tokenizer).generate(prompts, params or SamplingParams(), on_text=on_text)
