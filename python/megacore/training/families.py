"""The kinds of models that `megacore train` trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from megacore.data import Batch
from megacore.data.chat.datasets import build_chat_datasets
from megacore.data.loader import make_batch
from megacore.data.tokenizers import Tokenizer
from megacore.models.gpt import GPTModel
from megacore.models.staged import StagedModel
from megacore.parallel.apply import MakeModel
from megacore.training.encoder_families import BertFamily, T5Family
from megacore.training.family import Family, SplitSamples
from megacore.training.run_config import RunConfig


class GPTFamily(Family[Batch]):
    """Decoder-only language models, of text and of conversations."""

    # Read on the host: bounds of packed documents decide shapes.
    host_tensors: ClassVar[frozenset[str]] = frozenset({"cu_seqlens"})

    @property
    def make_model(self) -> MakeModel:
        """Makes a GPT."""
        return GPTModel

    def open_datasets(
        self,
        run: RunConfig,
        tokenizer: Tokenizer,
        *,
        wanted: tuple[int | None, int | None, int | None],
        may_build: bool,
        say: Callable[[str], None],
    ) -> SplitSamples:
        """See `Family`; conversations with `--sft`."""
        if not run.sft.sft:
            return super().open_datasets(
                run, tokenizer, wanted=wanted, may_build=may_build, say=say
            )
        chats = build_chat_datasets(
            run.sft,
            run.data,
            tokenizer,
            seed=run.training.seed,
            num_samples=wanted,
            may_build=may_build,
            say=say,
        )
        return SplitSamples(chats.train, chats.valid, chats.test)

    def make_batch(self, dataset: Any, samples: NDArray[np.int64], *, vocab_size: int) -> Batch:
        """See `Family`."""
        return make_batch(dataset, samples, vocab_size=vocab_size)

    def counts(self, batch: Batch) -> tuple[float, ...]:
        """Tokens whose loss counts."""
        return (float(batch.loss_mask.double().sum()),)

    def losses(
        self, model: StagedModel, batch: Batch, hidden: Tensor | None
    ) -> Tensor | tuple[Tensor, ...]:
        """Sum of the losses of the tokens that count."""
        output: Tensor = model(
            batch.tokens,
            batch.position_ids,
            labels=batch.labels,
            cu_seqlens=batch.cu_seqlens,
            hidden=hidden,
        )
        return ((output * batch.loss_mask).sum(),) if model.has_end else output


def family_of(run: RunConfig) -> Family[Any]:
    """What `--model-family` names."""
    return FAMILIES[run.model.model_family](run)


# Each is made from the settings of the run.
FAMILIES: dict[str, Callable[[RunConfig], Family[Any]]] = {
    "gpt": lambda run: GPTFamily(),
    "bert": BertFamily,
    "t5": T5Family,
}
