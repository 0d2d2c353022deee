"""What encoders and encoder-decoders cannot do in a training run, of what a GPT can."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from megacore.config.faults import fault
from megacore.config.settings import settings_of
from megacore.data.masking import MaskingConfig
from megacore.errors import Fault

if TYPE_CHECKING:
    from megacore.training.run_config import RunConfig


def family_faults(run: RunConfig) -> Iterator[Fault]:
    """Settings of a run that its kind of model does not go with.

    Args:
        run: Resolved or not.
    """
    family = run.model.model_family
    if family == "gpt":
        yield from _masking_of_gpt(run)
        return
    yield from _data_faults(run)
    shown: dict[str, object] = {"--model-family": family}
    refused: list[tuple[dict[str, object], str]] = []
    parallel, training = run.parallel, run.training
    given: dict[str, object]
    if parallel.context_parallel_size > 1:
        given = {"--context-parallel-size": parallel.context_parallel_size}
        refused.append((given, "sequences are split for causal attention only"))
    if run.checkpoint.ckpt_format == "torch":
        refused.append(({"--ckpt-format": "torch"}, "use torch_dist; files of ranks are of GPTs"))
    if run.lora.is_on:
        refused.append(({"--lora-rank": run.lora.lora_rank}, "adapters are for GPTs"))
    if run.sft.sft:
        refused.append(({"--sft": ""}, "conversations are for GPTs"))
    if parallel.simulate_world is not None:
        given = {"--simulate-world": parallel.simulate_world}
        refused.append((given, "stages of GPTs can be measured"))
    if family == "bert" and run.model.bert_binary_head and training.calculate_per_token_loss:
        more = "the loss of the order of sentences is no loss of tokens; or --bert-no-binary-head"
        refused.append(({"--calculate-per-token-loss": ""}, more))
    if family == "t5":
        refused += _t5_refusals(run)
    for given, more in refused:
        yield fault("MC1321", {**shown, **given}, more=more)
    if family == "t5":
        yield from _t5_faults(run)


def _masking_of_gpt(run: RunConfig) -> Iterator[Fault]:
    for setting in settings_of(MaskingConfig):
        value = getattr(run.masking, setting.dest)
        if value != setting.default:
            yield fault(
                "MC1320", {"--model-family": "gpt", setting.flag: value}, allowed="bert, t5"
            )


def _data_faults(run: RunConfig) -> Iterator[Fault]:
    # Only those who need them load the datasets.
    from megacore.data.bert_dataset import BertKind
    from megacore.data.t5_dataset import T5Kind

    positions = None
    if run.model.position_kind == "learned_absolute":
        positions = run.model.max_position_embeddings
    kind = (
        BertKind(run.masking, binary_head=run.model.bert_binary_head)
        if run.model.model_family == "bert"
        else T5Kind(run.masking)
    )
    yield from kind.faults(run.data, run.tokenizer, max_positions=positions)


def _t5_refusals(run: RunConfig) -> Iterator[tuple[dict[str, object], str]]:
    parallel = run.parallel
    if parallel.distribute_saved_activations:
        more = "what layers read of the encoder would be kept whole"
        yield {"--distribute-saved-activations": ""}, more
    if parallel.pipeline_model_parallel_size > 1 and run.model.position_kind == "relative":
        given: dict[str, object] = {
            "--position-embedding-type": "relative",
            "--pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
        }
        yield given, "all layers of a stack share one table of biases"


def _t5_faults(run: RunConfig) -> Iterator[Fault]:
    length, degree = run.masking.decoder_seq_length, run.parallel.tensor_model_parallel_size
    if run.parallel.sequence_parallel and length is not None and length % degree:
        given: dict[str, object] = {
            "--decoder-seq-length": length,
            "--tensor-model-parallel-size": degree,
            "--sequence-parallel": "",
        }
        yield fault("MC1322", given, allowed=f"a multiple of {degree}")
