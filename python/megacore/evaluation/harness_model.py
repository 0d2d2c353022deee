"""The model `megacore` of EleutherAI's lm-evaluation-harness: any GPT that megacore can load.

Importing this module registers it; `harness` does so and runs the harness's own command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megacore.errors import DataError, UsageError
from megacore.evaluation.scoring import Score, Span, score_spans
from megacore.inference.engine import Engine
from megacore.inference.loading import load_model
from megacore.inference.sampling import SamplingParams

_TOKENIZER_FILES = ("tokenizer_model", "vocab_file", "merge_file")
_DEFAULT_BATCH = 8
_DEFAULT_NEW_TOKENS = 256


@register_model("megacore")
class MegacoreLM(TemplateLM):
    """A GPT from a checkpoint, or from a model of another program.

    Args:
        load: Checkpoint directory, or a model in any format that `megacore convert` reads.
        ckpt_step: Iteration to load instead of the newest.
        dtype: "auto" (as trained), "float32", "bfloat16" or "float16".
        batch_size: Sequences in one pass; "auto" is 8.
        max_length: Tokens that the model sees at once; by default its positions.
        max_gen_toks: Most tokens of an answer, where the task does not say.
        device: Where it computes; by default a GPU. Without a GPU it is the CPU in any case.
        tokenizer: Other settings: tokenizer_model, vocab_file, merge_file.

    Raises:
        UsageError: There is no `load`, or a setting is not known.
        CheckpointError, DataError: Something cannot be read.
    """

    def __init__(
        self,
        load: str = "",
        *,
        ckpt_step: int | None = None,
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = _DEFAULT_NEW_TOKENS,
        device: str | None = None,
        **tokenizer: str,
    ) -> None:
        super().__init__()
        del max_batch_size  # of automatic batch sizes, which there are not
        if not load:
            raise UsageError("model megacore: give --model_args load=CHECKPOINT")
        unknown = sorted(set(tokenizer) - set(_TOKENIZER_FILES))
        if unknown:
            raise UsageError(f"model megacore has no setting {', '.join(unknown)}")
        # The harness's own default is a GPU, whether or not there is one.
        has_gpu = torch.cuda.is_available()
        place = (device or "cuda") if has_gpu else "cpu"
        self._model, self._text, config = load_model(
            load, step=ckpt_step, dtype=dtype, device=place, tokenizer_files=tokenizer
        )
        text = str(batch_size or "auto")
        self._batch_size = int(text) if text.isdecimal() else _DEFAULT_BATCH
        self._device = torch.device(place)
        self._max_new_tokens = max_gen_toks
        positions = self._model.max_positions or config.max_position_embeddings
        self.max_length = max_length or positions or 2048
        self._engine = Engine(
            self._model,
            self._text,
            max_length=self.max_length,
            max_batch_size=self._batch_size,
        )

    @property
    def eot_token_id(self) -> int:
        """Id that ends a document."""
        return self._text.eod

    @property
    def prefix_token_id(self) -> int:
        """Id before the first one of a text: what begins a sequence, or ends a document."""
        try:
            return self._text.bos
        except DataError:
            return self._text.eod

    @property
    def tokenizer_name(self) -> str:
        """Name of the kind of tokenizer."""
        return self._text.class_name.strip("_")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Ids of a text; special tokens are those that the tokenizer always adds."""
        return list(self._text.tokenize(string))

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log probability of each continuation, and whether it is the most likely one."""
        spans = []
        for _, context, continuation in requests:
            kept = [*context, *continuation][-(self.max_length + 1) :]
            spans.append(Span(kept, min(len(continuation), len(kept) - 1)))
        results = [(score.total, score.is_greedy) for score in self._scores(spans)]
        for (texts, _, _), result in zip(requests, results, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, result)
        return results

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Log probability of each text in windows, every token once."""
        spans: list[Span] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, predicted in map(make_disjoint_window, windows):
                spans.append(Span([*context, *predicted], len(predicted)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, score in zip(owners, self._scores(spans), strict=True):
            totals[owner] += score.total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each text, up to one of the texts that end it."""
        answers = [""] * len(requests)
        groups: dict[SamplingParams, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(self._params(dict(request.args[1])), []).append(place)
        for params, places in groups.items():
            room = self.max_length - params.tokens_to_generate
            prompts = [self._shortened(requests[place].args[0], room) for place in places]
            for place, result in zip(places, self._engine.generate(prompts, params), strict=True):
                answers[place] = result.text
                self.cache_hook.add_partial("generate_until", requests[place].args, result.text)
        return answers

    def _params(self, given: dict[str, Any]) -> SamplingParams:
        until = given.get("until") or ()
        stop = (until,) if isinstance(until, str) else tuple(until)
        wanted = given.get("max_gen_toks") or given.get("max_new_tokens") or self._max_new_tokens
        temperature = float(given.get("temperature") or 0.0)
        samples = bool(given.get("do_sample", temperature > 0.0)) and temperature > 0.0
        return SamplingParams(
            # A prompt of one token at least must fit before the answer.
            tokens_to_generate=max(1, min(int(wanted), self.max_length - 1)),
            temperature=temperature if samples else 1.0,
            top_k=int(given.get("top_k") or 0) if samples else 1,
            top_p=float(given.get("top_p") or 0.0) if samples else 0.0,
            stop=tuple(text for text in stop if text),
        )

    def _shortened(self, text: str, room: int) -> str:
        """A prompt without as much of its beginning as does not fit."""
        ids = self.tok_encode(text)
        while len(ids) > room:
            text = self._text.detokenize(ids[len(ids) - room :])
            # Text that is cut can have other tokens at its beginning.
            shorter = self.tok_encode(text)
            ids, room = shorter, room if len(shorter) <= room else room - 1
        return text

    def _scores(self, spans: Sequence[Span]) -> list[Score]:
        """Scores in the order of the spans; those of like length are computed together."""
        order = sorted(range(len(spans)), key=lambda place: -len(spans[place].tokens))
        found: dict[int, Score] = {}
        for batch in _batches(order, self._batch_size):
            chosen = [spans[place] for place in batch]
            scores = score_spans(self._model, chosen, vocab_size=self._text.vocab_size)
            found.update(zip(batch, scores, strict=True))
        return [found[place] for place in range(len(spans))]


def _batches(items: Sequence[int], size: int) -> Iterator[list[int]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
