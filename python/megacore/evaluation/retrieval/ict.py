"""`megacore train-ict`, and pretrain_ict.py with the same flags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megacore.config.faults import fault
from megacore.config.layers import Origin
from megacore.config.parser import merge_faults, read_layers, show_notes
from megacore.config.report import format_config
from megacore.config.settings import value_faults
from megacore.data.ict_config import IctConfig
from megacore.errors import EXIT_OK, CheckpointError, Fault, Information
from megacore.evaluation.retrieval.config import BiencoderConfig, RetrievalConfig
from megacore.evaluation.settings import without_own
from megacore.evaluation.training_run import EncoderRun, encoder_run
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.launch import launch_faults, launched_world_size
from megacore.training.live_view import Screen
from megacore.training.run_config import RunConfig, config_types

if TYPE_CHECKING:
    from megacore.training.trainer import Trainer

_OWN = (RetrievalConfig, BiencoderConfig, IctConfig)


@dataclass(frozen=True)
class IctRun:
    """A training of two encoders.

    Attributes:
        run: Resolved settings of training.
        ict: Settings of the data.
        biencoder: Settings of the model.
        retrieval: What is reported.
        origins: Where each value came from.
    """

    run: EncoderRun
    ict: IctConfig
    biencoder: BiencoderConfig
    retrieval: RetrievalConfig
    origins: dict[str, Origin]


def main(argv: list[str]) -> int:
    """Train two encoders; returns the exit code."""
    return train_ict(parse_ict(argv))


def parse_ict(argv: list[str], *, environment: Mapping[str, str] | None = None) -> IctRun:
    """A training from its command line and files, validated and resolved.

    Args:
        argv: Words of the command line, without the program name.
        environment: Variables of the launcher; by default those of this process.

    Raises:
        ConfigError: Every fault that could be found.
        Information: `--help` or `--print-config` was given.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        [*_OWN, *types.values()],
        argv,
        prog="megacore train-ict",
        description="Train two encoders for retrieval on the inverse cloze task.",
        megatron=True,
    )
    faults = without_own(faults, _OWN)
    run = encoder_run(RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()}))
    faults.extend(launch_faults(environment))
    size = launched_world_size(environment)
    kind = run.tokenizer.tokenizer_type or "BertWordPieceLowerCase"
    run = replace(
        run,
        tokenizer=replace(run.tokenizer, tokenizer_type=kind),
        parallel=replace(run.parallel, world_size=run.parallel.simulate_world or size),
    )
    retrieval, biencoder, ict = (parsed.configs[kind] for kind in _OWN)
    result = IctRun(run, ict, biencoder, retrieval, parsed.origins)
    faults.extend(_faults(result))
    merge_faults(faults, doubtful)
    show_notes([*parsed.notes, *run.notes()])
    resolved = run.resolved()
    assert isinstance(resolved, EncoderRun)
    if parsed.print_config:
        own = [parsed.configs[kind] for kind in _OWN]
        raise Information(format_config([*own, *resolved.components], parsed.origins))
    return replace(result, run=resolved)


def _faults(ict: IctRun) -> Iterator[Fault]:
    from megacore.data.ict_dataset import IctKind

    run, parallel = ict.run, ict.run.parallel
    yield from run.faults()
    for config in (ict.biencoder, ict.retrieval):
        yield from value_faults(config)
    yield from ict.ict.faults()
    positions = run.model.max_position_embeddings
    yield from IctKind(ict.ict).faults(run.data, run.tokenizer, max_positions=positions)
    sizes = {
        "--tensor-model-parallel-size": parallel.tensor_model_parallel_size,
        "--pipeline-model-parallel-size": parallel.pipeline_model_parallel_size,
        "--context-parallel-size": parallel.context_parallel_size,
    }
    larger = {name: size for name, size in sizes.items() if size > 1}
    if larger:
        yield fault("MC1348", larger, allowed="1")


def train_ict(
    ict: IctRun, *, screen: Screen | None = None, groups: ParallelGroups | None = None
) -> int:
    """Train, or evaluate only, as the settings say.

    A run without checkpoint of its own starts from the BERT of `--bert-load`, if one is named.

    Args:
        ict: Settings.
        screen: Prints lines; by default standard output.
        groups: The groups of this process; by default those that the launcher's variables and the
            settings describe.

    Returns:
        Exit code 0.

    Raises:
        MegacoreError: The run cannot go on; the message says why.
    """
    # torch takes a second to import; faults of the command line are reported before that.
    from megacore.checkpoint import decide
    from megacore.evaluation.retrieval.ict_family import IctFamily
    from megacore.training.loop import finish, train
    from megacore.training.pretrain import training_session

    run = ict.run
    top = ict.retrieval.retriever_report_topk_accuracies
    family = IctFamily(ict.ict, ict.biencoder, top=top)
    is_new = decide(run.checkpoint).source is None
    session = training_session(run, ict.origins, screen=screen, groups=groups, family=family)
    with session as trainer:
        family.share(trainer.parts.groups.dp)
        if is_new and ict.biencoder.bert_load is not None:
            _start_from_bert(trainer, ict.biencoder.bert_load)
        if run.training.skip_train:
            trainer.parts.screen.line("skipping training (--skip-train is on) ...")
            trainer.evaluate_at_end()
        elif not train(trainer):
            finish(trainer)
    return EXIT_OK


def _start_from_bert(trainer: Trainer, directory: str) -> None:
    """Gives both encoders the weights of a BERT."""
    from megacore.checkpoint import find_checkpoint, open_checkpoint
    from megacore.checkpoint.strictness import Strictness
    from megacore.models.biencoder import BiencoderModel

    found = find_checkpoint(directory)
    if found is None:
        raise CheckpointError(f"--bert-load {directory}: no checkpoint found there")
    checkpoint = open_checkpoint(found)
    learner = trainer.parts.learner
    (model,) = learner.model.stages.values()
    assert isinstance(model, BiencoderModel)
    # A BERT also has heads, which the encoders have not.
    strictness = Strictness(missing="raise", unexpected="ignore")
    for tower in model.towers:
        targets = dict(tower.language_model.named_parameters())
        checkpoint.load_into("model", targets, cast=True, strictness=strictness)
    learner.optimizer.refresh_main_params()
    trainer.parts.screen.line(f" loaded the encoders from {found}")
