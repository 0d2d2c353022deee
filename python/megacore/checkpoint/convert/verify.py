"""Whether a converted model computes what its source computes.

The reference is the source's tensors, as they are to be written, in float64. Everything else is
float32 and must be within a bound that is measured, not guessed: four times the error that float32
arithmetic itself makes in this model on this prompt, on either side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from megacore.checkpoint.convert.engine import Plan, prepared
from megacore.checkpoint.convert.model_stream import ModelDescription, Source
from megacore.checkpoint.convert.streamed import streamed_logits
from megacore.errors import CheckpointError
from megacore.system_memory import available_bytes

_PROMPT_TOKENS = 24
_TIMES_OWN_ERROR = 4.0


@dataclass(frozen=True)
class Comparison:
    """One computation against the reference.

    Attributes:
        name: What was computed, with what.
        difference: Largest absolute difference of a logit.
        agreeing: Positions whose most likely token is the same (or within the bound of it).
    """

    name: str
    difference: float
    agreeing: int


@dataclass
class Verification:
    """What verification found.

    Attributes:
        tokens: Prompt.
        bound: Largest difference that is accepted.
        largest: Largest absolute logit of the reference.
        comparisons: One for the source where another program can run it, one for the target.
        remarks: What was not done, and why.
    """

    tokens: list[int]
    bound: float
    largest: float
    comparisons: list[Comparison] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether every comparison is within the bound and agrees everywhere."""
        return all(
            one.difference <= self.bound and one.agreeing == len(self.tokens)
            for one in self.comparisons
        )

    def text(self) -> str:
        """The findings, a line each."""
        lines = [
            f"{one.name}: max |difference| {one.difference:.3g} (bound {self.bound:.3g}, largest "
            f"logit {self.largest:.3g}), same token at {one.agreeing} of {len(self.tokens)} "
            "positions"
            for one in self.comparisons
        ]
        return "\n".join([*lines, *self.remarks])


def default_prompt(description: ModelDescription) -> list[int]:
    """Token ids that are spread over the vocabulary; always the same for a model."""
    size = description.vocab_size or description.padded_vocab_size
    length = min(_PROMPT_TOKENS, description.config.max_position_embeddings or _PROMPT_TOKENS)
    # Multiples of the golden ratio spread evenly over any range.
    return [int(size * (i * 0.6180339887498949 % 1.0)) for i in range(1, length + 1)]


def check_prompt(tokens: list[int], description: ModelDescription) -> None:
    """Refuses a prompt that the model cannot take.

    Raises:
        CheckpointError: It is empty, too long, or has ids outside of the vocabulary.
    """
    size = description.vocab_size or description.padded_vocab_size
    wrong = [token for token in tokens if not 0 <= token < size]
    if not tokens or wrong:
        raise CheckpointError(
            f"the prompt to verify with needs tokens from 0 to {size - 1}, found {wrong or 'none'}"
        )
    longest = description.config.max_position_embeddings
    if longest is not None and len(tokens) > longest:
        raise CheckpointError(
            f"the prompt to verify with has {len(tokens)} tokens, the model {longest} positions"
        )


def verify(
    plan: Plan,
    source: Source,
    target: Source,
    *,
    tokens: list[int] | None = None,
    source_directory: Path | None = None,
    target_directory: Path | None = None,
) -> Verification:
    """Compares logits of source and target.

    Args:
        plan: What was converted.
        source: The source, still open.
        target: The written target, opened for reading.
        tokens: Prompt; None for the default one.
        source_directory: Where transformers can load the source, None if it cannot.
        target_directory: Where transformers can load the target, None if it cannot.

    Raises:
        CheckpointError: A tensor cannot be read.
    """
    description = plan.description
    if tokens is None:
        tokens = default_prompt(description)
    check_prompt(tokens, description)
    batch = torch.tensor([tokens])
    columns = description.vocab_size or description.padded_vocab_size

    def read(name: str) -> Tensor:
        return prepared(plan, source, name)

    def own(dtype: torch.dtype) -> Tensor:
        return streamed_logits(description, read, batch, dtype=dtype)[0, :, :columns]

    reference = own(torch.float64)
    largest = reference.abs().max().item()
    error = (own(torch.float32).double() - reference).abs().max().item()
    rounding = torch.finfo(torch.float32).eps * largest
    found = Verification(tokens, _TIMES_OWN_ERROR * max(error, rounding), largest)

    def compare(name: str, logits: Tensor) -> None:
        logits = logits[:, :columns].double()
        difference = (logits - reference).abs().max().item()
        # A tie within the bound is no disagreement.
        chosen = reference.gather(1, logits.argmax(1, keepdim=True))[:, 0]
        agreeing = int((chosen >= reference.max(1).values - 2 * found.bound).sum())
        # A NaN compares as false above, and is never within the bound.
        found.comparisons.append(
            Comparison(name, float("inf") if difference != difference else difference, agreeing)
        )

    if source_directory is not None:
        logits = _peer_logits(source_directory, batch, plan, found.remarks)
        if logits is not None:
            compare("source, run by transformers", logits)
    if target_directory is not None:
        logits = _peer_logits(target_directory, batch, plan, found.remarks)
        if logits is not None:
            compare("target, run by transformers", logits)
    compare("target, read back", _read_back(target, batch))
    return found


def _read_back(target: Source, tokens: Tensor) -> Tensor:
    return streamed_logits(target.description, target.read, tokens, dtype=torch.float32)[0]


@torch.no_grad()
def _peer_logits(directory: Path, tokens: Tensor, plan: Plan, remarks: list[str]) -> Tensor | None:
    """Logits [S, V] that transformers computes in float32; None when that is not possible."""
    try:
        from transformers import (
            AutoModelForCausalLM,
            AutoModelForPreTraining,
            AutoModelForSeq2SeqLM,
        )
        from transformers.utils import logging
    except ImportError:
        remarks.append(f"{directory}: not run by transformers, which is not installed")
        return None
    needed = 2 * 4 * plan.num_elements
    if needed > available_bytes():
        remarks.append(
            f"{directory}: not run by transformers: that takes about {needed / 1e9:.0f} GB of "
            "memory"
        )
        return None
    logging.disable_progress_bar()
    # The other forms of attention leave the soft caps of Gemma 2 out.
    kinds = {"bert": AutoModelForPreTraining, "t5": AutoModelForSeq2SeqLM}
    family = plan.description.config.model_family
    model = kinds.get(family, AutoModelForCausalLM).from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False, attn_implementation="eager"
    )
    model = model.float().eval()
    rounded = plan.description.dtype
    for parameter in model.parameters():
        parameter.copy_(parameter.to(rounded))  # as the target has it
    if family == "bert":
        logits: Tensor = model(tokens).prediction_logits
    elif family == "t5":
        logits = model(tokens, decoder_input_ids=tokens, use_cache=False).logits
    else:
        logits = model(tokens, use_cache=False).logits
    return logits[0].float()
