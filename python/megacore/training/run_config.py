"""The configuration of a training run: all components together, and the rules between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from megacore.checkpoint.config import CheckpointConfig
from megacore.config.faults import fault, required
from megacore.config.layers import Origin
from megacore.config.parser import Parsed, merge_faults, read_layers, show_notes
from megacore.config.report import flat_values, format_config
from megacore.config.settings import refuse, settings_of, value_faults
from megacore.data.chat.config import SftConfig
from megacore.data.config import DataConfig, TokenizerConfig, is_weight
from megacore.data.masking import MaskingConfig
from megacore.errors import Fault, Information
from megacore.layers.fp8_config import Fp8Config
from megacore.models.config import ModelConfig, RecomputeConfig
from megacore.models.kinds import KIND_SETTINGS
from megacore.models.lora import LoraConfig
from megacore.ops.config import KernelConfig
from megacore.optim.config import OptimizerConfig, PrecisionConfig, ScheduleConfig
from megacore.parallel.config import ParallelConfig
from megacore.parallel.launch import launch_faults, launched_world_size
from megacore.parallel.rules import grid_faults, model_faults, schedule_faults
from megacore.parallel.supported import notes as parallel_notes
from megacore.parallel.supported import unsupported
from megacore.training.config import BatchConfig, LoggingConfig, ProfileConfig, TrainingConfig
from megacore.training.family_rules import family_faults

SFT_SPLIT = "95, 5, 0"
DESCRIPTION = (
    "Train a GPT, BERT or T5. Flags have Megatron-LM's names; with - or _ between the words."
)

# `--use-checkpoint-args`: taken only where the command line says nothing ...
CHECKPOINT_FILLS = (
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "seq_length",
    "num_attention_heads",
    "kv_channels",
    "max_position_embeddings",
    "tokenizer_type",
    "lora_rank",
    "lora_alpha",
    "lora_targets",
)
# ... and always taken, because the weights mean nothing without them.
CHECKPOINT_DECIDES = (
    *KIND_SETTINGS,
    "num_query_groups",
    "group_query_attention",
    "position_embedding_type",
    "add_position_embedding",
    "use_rotary_position_embeddings",
    "rotary_base",
    "rotary_base_local",
    "rotary_percent",
    "rotary_interleaved",
    "rotary_seq_len_interpolation_factor",
    "use_rope_scaling",
    "rope_scaling_type",
    "rope_scaling_factor",
    "rope_scaling_original_length",
    "rope_scaling_low_freq_factor",
    "rope_scaling_high_freq_factor",
    "rope_scaling_beta_fast",
    "rope_scaling_beta_slow",
    "rope_scaling_truncate",
    "rope_scaling_attention_factor",
    "rope_scaling_short_factors",
    "rope_scaling_long_factors",
    "add_bias_linear",
    "add_qkv_bias",
    "bias_gelu_fusion",
    "openai_gelu",
    "squared_relu",
    "swiglu",
    "geglu",
    "quick_gelu",
    "untie_embeddings_and_output_weights",
    "apply_layernorm_1p",
    "apply_residual_connection_post_layernorm",
    "normalization",
    "norm_epsilon",
    "qk_layernorm",
    "apply_query_key_layer_scaling",
    "window_size",
    "window_attn_skip_freq",
    "softmax_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "scale_embeddings",
    "sandwich_norm",
    "parallel_residual",
)

# ... and these where the command line says nothing about any of them, if they fit the processes.
CHECKPOINT_SIZES = (
    "tensor_model_parallel_size",
    "pipeline_model_parallel_size",
    "num_layers_per_virtual_pipeline_stage",
)

ReadCheckpoint = Callable[["RunConfig"], Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a training run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    recompute: RecomputeConfig = field(default_factory=RecomputeConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelConfig = field(default_factory=KernelConfig)
    fp8: Fp8Config = field(default_factory=Fp8Config)

    @property
    def components(self) -> list[Any]:
        """The configurations of the components, in order."""
        return [getattr(self, f.name) for f in fields(self)]

    def values(self) -> dict[str, Any]:
        """Name -> value of every setting, as JSON can hold them."""
        return flat_values(self.components)

    def faults(self) -> Iterator[Fault]:
        """Every rule that the values break: inside components, and between them."""
        for component in self.components:
            if component is self.batch:
                replicas = self.parallel.data_parallel_size
                yield from self.batch.faults(data_parallel_size=replicas)
            else:
                yield from component.faults()
        yield from self._model_rules()
        yield from self._length_rules()
        yield from self._schedule_rules()
        yield from self._parallel_rules()
        yield from self._lora_rules()
        yield from self._sft_rules()
        yield from family_faults(self)

    def _model_rules(self) -> Iterator[Fault]:
        length, positions = self.data.length, self.model.max_position_embeddings
        if length is not None and positions is not None and length > positions:
            given = {"--seq-length": length, "--max-position-embeddings": positions}
            yield fault("MC0603", given, allowed=f"at most {positions}")
        half = self.precision.fp16 or self.precision.bf16
        if self.model.fp32_residual_connection and not half:
            yield fault("MC0503", {"--fp32-residual-connection": ""})
        if self.fp8.is_on and self.checkpoint.ckpt_format == "torch":
            flags = {"--fp8-format": self.fp8.fp8, "--ckpt-format": "torch"}
            yield fault("MC1231", flags, allowed="--ckpt-format torch_dist")
        if self.precision.fp16_lm_cross_entropy:
            kind = self.model.cross_entropy_fusion_impl
            if kind == "linear":
                flags = {"--cross-entropy-fusion-impl": kind, "--fp16-lm-cross-entropy": ""}
                yield fault("MC1230", flags, allowed="--cross-entropy-fusion-impl native")

    def _length_rules(self) -> Iterator[Fault]:
        batch, training, data = self.batch, self.training, self.data
        if batch.rampup_batch_size is not None and training.train_iters is not None:
            given = {
                "--rampup-batch-size": " ".join(map(str, batch.rampup_batch_size)),
                "--train-iters": training.train_iters,
            }
            yield fault("MC0204", given, allowed="--train-samples instead of --train-iters")
        total = batch.global_batch_size or batch.micro_batch_size
        samples = training.train_samples
        constant = batch.rampup_batch_size is None
        if constant and samples is not None and total is not None and 0 < samples < total:
            given = {"--train-samples": samples, "--global-batch-size": total}
            yield fault("MC0212", given, allowed=f"at least {total}")
        if data.per_split_paths and not data.train_data_path and not training.skip_train:
            yield fault("MC0607", {"--train-data-path": "(not given)"})

    def _schedule_rules(self) -> Iterator[Fault]:
        schedule, training = self.schedule, self.training
        if schedule.lr is None and not training.skip_train:
            yield required("--lr")
        in_samples: dict[str, int | None] = {
            "--lr-decay-samples": schedule.lr_decay_samples,
            "--lr-warmup-samples": schedule.lr_warmup_samples or None,
            "--lr-wsd-decay-samples": schedule.lr_wsd_decay_samples,
        }
        in_iters: dict[str, int | None] = {
            "--lr-decay-iters": schedule.lr_decay_iters,
            "--lr-warmup-iters": schedule.lr_warmup_iters or None,
            "--lr-wsd-decay-iters": schedule.lr_wsd_decay_iters,
        }
        if training.train_iters is not None:
            wrong, right, unit, total = in_samples, in_iters, "iters", training.train_iters
        elif training.train_samples is not None:
            wrong, right, unit, total = in_iters, in_samples, "samples", training.train_samples
        else:
            return
        given = {name: value for name, value in wrong.items() if value is not None}
        if given:
            fault_id = "MC0302" if unit == "iters" else "MC0303"
            yield fault(fault_id, {f"--train-{unit}": total, **given}, allowed=f"the -{unit} flags")
        decay = right[f"--lr-decay-{unit}"] or total
        warmup = right[f"--lr-warmup-{unit}"] or 0
        if warmup >= decay > 0:
            given = {f"--lr-warmup-{unit}": warmup, f"--lr-decay-{unit}": decay}
            yield fault("MC0305", given, allowed=f"a warm-up of less than {decay}")
        if schedule.lr_decay_style == "WSD":
            name = f"--lr-wsd-decay-{unit}"
            anneal = right[name]
            if anneal is None or anneal > decay:
                yield fault("MC0307", {name: anneal}, allowed=f"{name} of at most {decay}")

    def _parallel_rules(self) -> Iterator[Fault]:
        parallel = self.parallel
        if any(True for _ in parallel.faults()) or any(True for _ in value_faults(self.model)):
            return
        yield from unsupported(parallel)
        if self.training.trace_nan and parallel.model_parallel_size > 1:
            more = "the micro-batch would have to be run again by all processes of a replica"
            yield fault("MC0011", {"--trace-nan": ""}, allowed="leave it out", more=more)
        wrong = [
            *grid_faults(parallel),
            *model_faults(parallel, self.model, self.recompute, self.data.length),
        ]
        yield from wrong
        # A schedule is made to see whether it can be made: only for sizes that make sense.
        if not wrong and not any(True for _ in value_faults(self.batch)):
            yield from schedule_faults(parallel, self.batch, self.model.total_depth)

    def _lora_rules(self) -> Iterator[Fault]:
        if not self.lora.is_on:
            return
        given = {"--lora-rank": self.lora.lora_rank}
        if self.checkpoint.ckpt_format == "torch":
            yield fault("MC0751", {**given, "--ckpt-format": "torch"}, allowed="torch_dist")
        checkpoint = self.checkpoint
        if checkpoint.load is None and checkpoint.pretrained_checkpoint is None:
            yield fault("MC1103", given, allowed="--pretrained-checkpoint DIR")
        if self.parallel.standalone_embedding_stage:
            yield fault("MC1104", {**given, "--standalone-embedding-stage": ""})

    def _sft_rules(self) -> Iterator[Fault]:
        if not self.sft.sft:
            return
        kind = self.tokenizer.tokenizer_type
        if kind != "HuggingFaceTokenizer":
            given = {"--sft": "", "--tokenizer-type": kind}
            yield fault("MC1112", given, allowed="--tokenizer-type HuggingFaceTokenizer")
        data = self.data
        for name, value in {
            "--mock-data": data.mock_data,
            "--reset-position-ids": data.reset_position_ids,
            "--reset-attention-mask": data.reset_attention_mask,
            "--eod-mask-loss": data.eod_mask_loss,
            "--renormalize-blend-weights": data.renormalize_blend_weights,
        }.items():
            if value:
                yield fault("MC1113", {"--sft": "", name: ""}, allowed="--sft alone")
        for name, paths in (
            ("--data-path", data.data_path),
            ("--train-data-path", data.train_data_path),
            ("--valid-data-path", data.valid_data_path),
            ("--test-data-path", data.test_data_path),
        ):
            if any(is_weight(word) for word in paths or ()):
                yield fault("MC1114", {name: " ".join(paths or ())}, allowed="PATH ...")

    def resolved(self) -> RunConfig:
        """A copy in which everything that can be derived is filled, and booleans are final.

        Raises:
            ConfigError: All rules that are broken.
        """
        refuse(self.faults())
        data, checkpoint = self.data, self.checkpoint
        if self.sft.sft and data.data_path and data.split is None:
            data = replace(data, split=SFT_SPLIT)
        data = data.resolved()
        model = self.model
        if model.max_position_embeddings is None:
            model = replace(model, max_position_embeddings=data.seq_length)
        training, logging = self.training, self.logging
        if self.precision.fp16 and not self.precision.loss_scale:
            # Dynamic loss scaling finds the scale by overflowing: NaN is part of the search.
            training = replace(training, check_for_nan_in_loss_and_grad=False)
        if self.sft.sft:
            # Answers differ in length: the mean of the means of micro-batches would weigh them by
            # how they happen to be put together.
            training = replace(training, calculate_per_token_loss=True)
        if logging.wandb_project and not logging.wandb_save_dir:
            logging = replace(logging, wandb_save_dir=f"{checkpoint.save or '.'}/wandb")
        if self.training.skip_train and self.schedule.lr is None:
            schedule = replace(self.schedule, lr=0.0)
        else:
            schedule = self.schedule
        return replace(
            self,
            model=model.resolved(),
            recompute=self.recompute.resolved(),
            lora=self.lora.resolved(),
            batch=self.batch.resolved(data_parallel_size=self.parallel.data_parallel_size),
            training=training,
            optimizer=self.optimizer.resolved(),
            schedule=schedule,
            precision=self.precision.resolved(),
            data=data,
            tokenizer=self.tokenizer.resolved(),
            logging=logging,
            parallel=self.parallel.resolved(),
        )

    def with_tokenizer_of_family(self) -> RunConfig:
        """A copy with the usual kind of tokenizer of the kind of model, if none is given."""
        if self.tokenizer.tokenizer_type is not None or self.model.model_family == "gpt":
            return self
        kind = "BertWordPieceLowerCase"
        return replace(self, tokenizer=replace(self.tokenizer, tokenizer_type=kind))

    def in_world(self, world_size: int) -> RunConfig:
        """A copy for this many processes, or for as many as `--simulate-world` says.

        Args:
            world_size: Processes that the launcher started.
        """
        parallel = self.parallel
        size = parallel.simulate_world or world_size
        return replace(self, parallel=replace(parallel, world_size=size))

    def notes(self) -> list[str]:
        """Remarks on settings that have no effect, one line each."""
        notes = []
        model, checkpoint = self.model, self.checkpoint
        if model.num_query_groups != 1 and not model.group_query_attention:
            notes.append("--num-query-groups has no effect without --group-query-attention")
        if checkpoint.save_interval is not None and checkpoint.save is None:
            notes.append("--save-interval has no effect without --save: nothing will be saved")
        if not self.fp8.is_on and self.fp8 != Fp8Config():
            notes.append("flags of FP8 have no effect without --fp8-format")
        if self.logging.log_progress and checkpoint.save is None:
            notes.append("--log-progress has no effect without --save")
        return notes + parallel_notes(self.parallel)


def config_types() -> dict[str, type]:
    """Name of the component -> its configuration dataclass."""
    run = RunConfig()
    return {f.name: type(getattr(run, f.name)) for f in fields(run)}


def parse_run(
    argv: Sequence[str],
    *,
    prog: str = "megacore train",
    read_checkpoint: ReadCheckpoint | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[RunConfig, dict[str, Origin]]:
    """A training run from its command line and files, validated and resolved.

    Args:
        argv: Words of the command line, without the program name.
        prog: Name of the command, for messages.
        read_checkpoint: With `--use-checkpoint-args`, called with the run as given (not yet
            validated); returns what `RunConfig.values()` was when the checkpoint was saved.
        environment: Variables of the launcher; by default those of this process.

    Returns:
        The run, and the origin of every value.

    Raises:
        ConfigError: Every fault that could be found.
        Information: `--help` or `--print-config` was given.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        list(types.values()), argv, prog=prog, description=DESCRIPTION, megatron=True
    )
    run, origins = _assemble(parsed, types), parsed.origins
    if run.checkpoint.use_checkpoint_args and run.checkpoint.load and read_checkpoint:
        stored = read_checkpoint(run)
        run, origins = with_checkpoint(run, origins, stored)
        run, origins = with_stored_sizes(run, origins, stored, launched_world_size(environment))
    faults.extend(launch_faults(environment))
    launched = launched_world_size(environment)
    if run.parallel.simulate_world is not None and launched > 1:
        given = {"--simulate-world": run.parallel.simulate_world, "processes": launched}
        faults.append(fault("MC0904", given, allowed="1 process"))
    run = run.with_tokenizer_of_family().in_world(launched)
    faults.extend(run.faults())
    merge_faults(faults, doubtful)
    show_notes([*parsed.notes, *run.notes()])
    run = run.resolved()
    if parsed.print_config:
        raise Information(format_config(run.components, origins))
    return run, origins


def _assemble(parsed: Parsed, types: Mapping[str, type]) -> RunConfig:
    return RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()})


def with_checkpoint(
    run: RunConfig, origins: Mapping[str, Origin], checkpoint_values: Mapping[str, Any]
) -> tuple[RunConfig, dict[str, Origin]]:
    """Takes the architecture from a checkpoint, as `--use-checkpoint-args` asks.

    Args:
        run: The run as given, not resolved.
        origins: Origin of every value of `run`.
        checkpoint_values: `RunConfig.values()` of the run that saved the checkpoint; names that
            are missing in it keep the value of `run`.

    Returns:
        The run with the checkpoint's values, and the origins with those marked.
    """
    origins = dict(origins)
    components = {}
    for component_field in fields(run):
        component = getattr(run, component_field.name)
        changes = {}
        for setting in settings_of(component.__class__):
            name = setting.dest
            if name not in checkpoint_values:
                continue
            old = getattr(component, name)
            if name not in CHECKPOINT_DECIDES and (name not in CHECKPOINT_FILLS or old is not None):
                continue
            new = checkpoint_values[name]
            new = tuple(new) if isinstance(new, list) else new
            changes[name] = new
            given = origins.get(name, Origin())
            replaced = given.kind != "default" and old != new
            detail = f"{given.kind} said {old}" if replaced else ""
            origins[name] = Origin("checkpoint", detail)
        components[component_field.name] = replace(component, **changes)
    return RunConfig(**components), origins


def with_stored_sizes(
    run: RunConfig,
    origins: Mapping[str, Origin],
    checkpoint_values: Mapping[str, Any],
    world_size: int,
) -> tuple[RunConfig, dict[str, Origin]]:
    """Takes the sizes of tensor and pipeline parallelism from a checkpoint, where they fit.

    Megatron-LM always takes them, because it can load no other ones.

    Args:
        run: As `with_checkpoint`.
        origins: As `with_checkpoint`.
        checkpoint_values: As `with_checkpoint`.
        world_size: Processes of the run.

    Returns:
        As `with_checkpoint`.
    """
    there = [name for name in CHECKPOINT_SIZES if name in checkpoint_values]
    stored = {name: checkpoint_values[name] for name in there}
    unsaid = all(origins.get(name, Origin()).kind == "default" for name in CHECKPOINT_SIZES)
    degrees = [stored.get(name, 1) for name in CHECKPOINT_SIZES[:2]]
    if not unsaid or not all(isinstance(degree, int) and degree > 0 for degree in degrees):
        return run, dict(origins)
    size = degrees[0] * degrees[1] * run.parallel.context_parallel_size
    if size == 1 or size <= 0 or world_size % size:
        return run, dict(origins)
    parallel = replace(run.parallel, **stored)
    return replace(run, parallel=parallel), {
        **origins,
        **{name: Origin("checkpoint", "") for name in stored},
    }
