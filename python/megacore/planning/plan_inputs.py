"""From a command line of `megacore plan` to the model, the hardware and what may be searched.

The command line is one of `megacore train`, complete or not, with the flags of the plan among
them. What training would need and a plan does not (data, learning rate, length) is filled with
stand-ins, which the printed command then shows. Flags of the layout that are given are kept; the
others are searched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megacore.checkpoint.convert.hf.families import family_of
from megacore.checkpoint.convert.hf.files import read_json
from megacore.config.faults import fault, required
from megacore.config.layers import Origin
from megacore.config.parser import merge_faults, read_layers, show_notes
from megacore.config.settings import settings_of, value_faults
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import build_tokenizer
from megacore.errors import ConfigError, DataError, Fault
from megacore.models.config import ModelConfig
from megacore.parallel.config import ParallelConfig
from megacore.planning.hardware import HardwareProfile, load_profile, with_link
from megacore.planning.layouts import Constraints
from megacore.planning.model_shape import PlanModel
from megacore.planning.plan_config import PlanConfig
from megacore.training.run_config import RunConfig, config_types

GIBIBYTE = 1 << 30
DEFAULT_GPU = "h100-sxm"
GPT2_VOCABULARY = 50257
_DESCRIPTION = (
    "Rank layouts of a run on a cluster by estimated step time. Takes the flags of megacore train: "
    "those of the layout that are given are kept, the others are searched."
)
# Fields of the layout, which the search decides: set back to their defaults in the base run.
_LAYOUT_FIELDS = {
    "parallel": (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "context_parallel_size",
        "sequence_parallel",
        "pipeline_schedule",
        "num_layers_per_virtual_pipeline_stage",
        "use_distributed_optimizer",
        "data_parallel_sharding_strategy",
        "overlap_grad_reduce",
        "overlap_param_gather",
        "tp_comm_overlap",
        "simulate_world",
    ),
    "recompute": (
        "recompute_activations",
        "recompute_granularity",
        "recompute_method",
        "recompute_num_layers",
    ),
    "batch": ("micro_batch_size",),
}


@dataclass(frozen=True, kw_only=True)
class PlanInputs:
    """Everything a plan is made from.

    Attributes:
        config: What is asked and shown.
        base: The run without a layout, valid for one process.
        model: What costs.
        profile: The hardware.
        constraints: What may be searched.
        pinned: Axis -> the flag that fixes it, as the user wrote it.
    """

    config: PlanConfig
    base: RunConfig
    model: PlanModel
    profile: HardwareProfile
    constraints: Constraints
    pinned: dict[str, str]


def read_inputs(argv: Sequence[str]) -> PlanInputs:
    """Reads a command line.

    Args:
        argv: Words behind `megacore plan`.

    Raises:
        ConfigError: Every fault that could be found.
        CheckpointError: The config.json cannot be understood.
        Information: Help was asked for.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        [PlanConfig, *types.values()],
        _spelled(argv),
        prog="megacore plan",
        description=_DESCRIPTION,
        megatron=True,
    )
    config: PlanConfig = parsed.configs[PlanConfig]
    given = RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()})
    faults.extend(config.faults())
    vocabulary = None
    if config.hf_model is not None:
        given, vocabulary = _with_hf_model(given, config.hf_model, parsed.origins)
    base = _without_layout(given)
    base, vocabulary = _with_stand_ins(base, vocabulary)
    faults.extend(base.faults())
    faults.extend(value_faults(given.parallel))
    faults.extend(value_faults(given.recompute))
    if given.batch.global_batch_size is None:
        faults.append(required("--global-batch-size"))
    if vocabulary is None and not doubtful:
        faults.append(fault("MC1422", {"--vocab-size": None}, allowed="--vocab-size N"))
    pinned, choices, found = _pinned(given, config.freed, parsed.origins)
    faults.extend(found)
    merge_faults(faults, doubtful)
    assert config.gpus is not None  # its fault was raised
    assert given.batch.global_batch_size is not None
    show_notes(parsed.notes)
    profile = _profile(config)
    return PlanInputs(
        config=config,
        base=base,
        model=PlanModel.of(base.resolved(), vocab_size=vocabulary),
        profile=profile,
        constraints=Constraints(
            gpus=config.gpus,
            global_batch=given.batch.global_batch_size,
            memory_bytes=None if config.memory_gib is None else config.memory_gib * GIBIBYTE,
            choices=choices,
            top=config.top,
        ),
        pinned=pinned,
    )


def _spelled(argv: Sequence[str]) -> list[str]:
    """`--profile FILE` is the hardware; `--profile` alone is the switch of training."""
    words: list[str] = []
    for position, word in enumerate(argv):
        following = argv[position + 1] if position + 1 < len(argv) else "--"
        if word.startswith("--profile="):
            word = "--hardware-profile=" + word.partition("=")[2]
        elif word == "--profile" and not following.startswith("-"):
            word = "--hardware-profile"
        words.append(word)
    return words


def _with_hf_model(
    run: RunConfig, path: str, origins: Mapping[str, Origin]
) -> tuple[RunConfig, int]:
    """The run with the architecture of a config.json, and its vocabulary."""
    file = Path(path)
    if file.is_dir():
        file = file / "config.json"
    values = read_json(file)
    config, remarks = family_of(values, str(file)).read(values, str(file))
    show_notes(remarks)
    # Said once, and only what has an effect.
    config = replace(config, encoder_num_layers=None)
    if not config.group_query_attention:
        config = replace(config, num_query_groups=1)
    rows = values.get("vocab_size")
    if not isinstance(rows, int) or isinstance(rows, bool) or rows < 1:
        raise ConfigError([fault("MC1422", {str(file): f"vocab_size {rows!r}"})])
    own = {
        setting.dest: getattr(run.model, setting.dest)
        for setting in settings_of(ModelConfig)
        if origins.get(setting.dest, Origin()).kind != "default"
    }
    return replace(run, model=replace(config, **own)), rows


def _without_layout(run: RunConfig) -> RunConfig:
    """The run for one process; what is neither layout nor default stays."""
    parts: dict[str, Any] = {}
    for name, dests in _LAYOUT_FIELDS.items():
        part = getattr(run, name)
        defaults = {setting.dest: setting.default for setting in settings_of(part.__class__)}
        parts[name] = replace(part, **{dest: defaults[dest] for dest in dests})
    parts["parallel"] = replace(parts["parallel"], world_size=1)
    parts["batch"] = replace(parts["batch"], micro_batch_size=1)
    return replace(run, **parts)


def _with_stand_ins(run: RunConfig, vocabulary: int | None) -> tuple[RunConfig, int | None]:
    """The run with what training needs and a plan does not, and the rows of its vocabulary."""
    training, schedule, data = run.training, run.schedule, run.data
    if training.train_iters is None and training.train_samples is None:
        training = replace(training, train_iters=100, eval_iters=0)
    if schedule.lr is None:
        schedule = replace(schedule, lr=1e-4)
    if not data.data_path and not data.per_split_paths and not data.mock_data:
        data = replace(data, mock_data=True)
    model, tokenizer = run.model, run.tokenizer
    if model.position_embedding_type == "learned_absolute" and not model.max_position_embeddings:
        model = replace(model, max_position_embeddings=data.length)
    if _names_no_tokenizer(tokenizer):
        vocabulary = tokenizer.vocab_size or vocabulary
        if vocabulary is not None and vocabulary > 1:
            # One more id than it is told: the end of a document.
            tokenizer = replace(
                tokenizer, tokenizer_type="NullTokenizer", vocab_size=vocabulary - 1
            )
    elif vocabulary is None:
        vocabulary = _rows(tokenizer)
    return replace(
        run, model=model, training=training, schedule=schedule, data=data, tokenizer=tokenizer
    ), vocabulary


def _names_no_tokenizer(tokenizer: TokenizerConfig) -> bool:
    named = (tokenizer.tokenizer_type, tokenizer.tokenizer_model, tokenizer.vocab_file)
    return named == (None, None, None)


def _rows(tokenizer: TokenizerConfig) -> int | None:
    """Ids of a tokenizer; without its files as far as that is possible."""
    try:
        return build_tokenizer(tokenizer.resolved()).vocab_size
    except (ConfigError, DataError, OSError):
        kind = tokenizer.tokenizer_type
        if tokenizer.vocab_size is not None:
            return tokenizer.vocab_size
        return GPT2_VOCABULARY if kind in (None, "GPT2BPETokenizer") else None


def _profile(config: PlanConfig) -> HardwareProfile:
    profile = load_profile(config.hardware_profile or config.gpu or DEFAULT_GPU)
    if config.gpus_per_node is not None:
        profile = replace(profile, gpus_per_node=config.gpus_per_node)
    return with_link(profile, config.link) if config.link is not None else profile


def _pinned(
    run: RunConfig, freed: frozenset[str], origins: Mapping[str, Origin]
) -> tuple[dict[str, str], dict[str, tuple[Any, ...]], list[Fault]]:
    """Axes that flags fix: axis -> flag, and axis of the search -> its only value."""
    flags: dict[str, str] = {}
    choices: dict[str, tuple[Any, ...]] = {}

    def given(dest: str) -> bool:
        return origins.get(dest, Origin()).kind != "default"

    def pin(axis: str, values: dict[str, Any], shown: str, group: str | None = None) -> None:
        if (group or axis) not in freed:
            flags[group or axis] = " ".join(filter(None, (flags.get(group or ""), shown)))
            choices.update({name: (value,) for name, value in values.items()})

    parallel = run.parallel
    for axis, dest in {
        "tp": "tensor_model_parallel_size",
        "pp": "pipeline_model_parallel_size",
        "cp": "context_parallel_size",
    }.items():
        if given(dest):
            pin(
                axis,
                {axis: getattr(parallel, dest)},
                f"{_flag(ParallelConfig, dest)} {getattr(parallel, dest)}",
            )
    if parallel.sequence_parallel:
        pin("sequence_parallel", {"sequence_parallel": True}, "--sequence-parallel")
    if given("micro_batch_size") and run.batch.micro_batch_size is not None:
        size = run.batch.micro_batch_size
        pin("micro_batch", {"micro_batch": size}, f"--micro-batch-size {size}")
    faults = _pin_schedule(run, pin)
    strategy = parallel.data_parallel_sharding_strategy
    if strategy != "no_shard" or given("data_parallel_sharding_strategy"):
        pin("sharding", {"sharding": strategy}, f"--data-parallel-sharding-strategy {strategy}")
    elif parallel.use_distributed_optimizer:
        pin("sharding", {"sharding": "optim"}, "--use-distributed-optimizer")
    for dest in ("overlap_grad_reduce", "overlap_param_gather", "tp_comm_overlap"):
        if getattr(parallel, dest):
            pin(dest, {dest: True}, _flag(ParallelConfig, dest), group="overlap")
    kind = run.recompute.recompute_granularity
    if run.recompute.recompute_activations:
        kind = kind or "selective"
    if kind is not None:
        pin("recompute", {"recompute": kind}, f"recompute {kind}")
    return flags, choices, faults


def _pin_schedule(run: RunConfig, pin: Any) -> list[Fault]:
    """The schedule and virtual stages, which depend on each other."""
    parallel = run.parallel
    per_stage = parallel.num_layers_per_virtual_pipeline_stage
    ranks = parallel.pipeline_model_parallel_size
    if per_stage is not None:
        shown = f"--num-layers-per-virtual-pipeline-stage {per_stage}"
        layers = run.model.depth or 0
        if ranks == 1 or layers % (ranks * per_stage):
            given = {
                "--num-layers-per-virtual-pipeline-stage": per_stage,
                "--pipeline-model-parallel-size": ranks,
                "--num-layers": layers,
            }
            return [fault("MC1423", given)]
        stages = layers // (ranks * per_stage)
        pin("schedule", {"schedule": "interleaved", "virtual_stages": stages}, shown)
    elif parallel.pipeline_schedule is not None:
        name = parallel.pipeline_schedule
        pin("schedule", {"schedule": name}, f"--pipeline-schedule {name}")
    return []


def _flag(config: type, dest: str) -> str:
    return next(setting.flag for setting in settings_of(config) if setting.dest == dest)
