"""The settings of training on data other than those of pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from megacore.errors import Fault
from megacore.training.run_config import RunConfig

# Rules about the samples of BERT's pretraining.
_SAMPLE_RULES = frozenset(f"MC{number}" for number in range(1301, 1320))


@dataclass(frozen=True, kw_only=True)
class EncoderRun(RunConfig):
    """A training run of encoders whose samples are not those of BERT's pretraining."""

    def faults(self) -> Iterator[Fault]:
        """Every rule that the values break, but for those about BERT's own samples and losses."""
        for one in super().faults():
            # Two losses with different counts cannot be summed per token; here there is one.
            of_losses = "--calculate-per-token-loss" in one.given
            if one.id not in _SAMPLE_RULES and not of_losses:
                yield one


def encoder_run(run: RunConfig) -> EncoderRun:
    """The same settings for a run of encoders."""
    values = {field.name: getattr(run, field.name) for field in fields(run)}
    return EncoderRun(**{**values, "model": replace(run.model, model_family="bert")})
