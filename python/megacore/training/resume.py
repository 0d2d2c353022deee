"""How a run continues from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from megacore.checkpoint import Checkpoint, ResumePlan, VocabularyRows, open_checkpoint
from megacore.checkpoint.adapters import holds_adapters
from megacore.checkpoint.config import CheckpointConfig
from megacore.checkpoint.strictness import STRICTNESS
from megacore.checkpoint.writers import together
from megacore.config.fields import flag_fields
from megacore.config.report import format_resume_table
from megacore.errors import CheckpointError
from megacore.models.kinds import KIND_SETTINGS
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.random_streams import RandomStream
from megacore.training.checkpoint_parts import (
    OPTIMIZER,
    RNG,
    GroupWriters,
    Loaded,
    load_model,
    load_optimizer,
    restore_rng_of,
    rng_layout,
)
from megacore.training.checkpoints import environment
from megacore.training.learner import Learner
from megacore.training.live_view import Screen
from megacore.training.resume_report import resume_rows
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState

Result = TypeVar("Result")

# With another value of these the weights of a checkpoint mean nothing, even where they fit.
_MUST_MATCH = (
    *KIND_SETTINGS,
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "num_attention_heads",
    "kv_channels",
    "group_query_attention",
    "num_query_groups",
    "position_embedding_type",
    "rotary_interleaved",
    "rotary_percent",
    "normalization",
    "apply_layernorm_1p",
    "apply_residual_connection_post_layernorm",
    "qk_layernorm",
    "swiglu",
    "geglu",
    "squared_relu",
    "quick_gelu",
    "window_size",
    "window_attn_skip_freq",
    "softmax_scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "scale_embeddings",
    "sandwich_norm",
    "parallel_residual",
    "add_bias_linear",
    "add_qkv_bias",
    "untie_embeddings_and_output_weights",
)
_ADAPTERS_MUST_MATCH = ("lora_rank", "lora_alpha", "lora_targets")


class Resume:
    """An open checkpoint that a run continues from.

    Args:
        plan: What to take from it; its source must not be None.
        run: The settings of this run.
        groups: The processes of the run, which all read the same checkpoint.
        device: Where they train.
        screen: Prints what differs.

    Raises:
        CheckpointError: The checkpoint is damaged, or the model is another one.
    """

    def __init__(
        self,
        plan: ResumePlan,
        *,
        run: RunConfig,
        groups: ParallelGroups,
        device: torch.device,
        screen: Screen,
    ) -> None:
        assert plan.source is not None
        self._plan = plan
        self._run = run
        self._groups = groups
        self._writers = GroupWriters(groups.world, device)
        self._screen = screen
        self._screen.line(f" loading checkpoint from {plan.source}")
        source = plan.source
        self._checkpoint = self._together(lambda: self._open(source))
        self._strictness = STRICTNESS[run.checkpoint.dist_ckpt_strictness]
        self._arguments = self._stored_arguments()
        self._of_adapters = holds_adapters(self._arguments)
        if self._of_adapters and not run.lora.is_on:
            raise CheckpointError(
                f"{source} holds adapters only: pass --lora-rank {self._arguments['lora_rank']} to "
                "go on training them, or join them with their base model (megacore lora merge)"
            )
        self._check_architecture()

    def _open(self, source: Path) -> Checkpoint:
        return open_checkpoint(source, share=(self._writers.rank, self._writers.size))

    def _together(self, work: Callable[[], Result]) -> Result:
        """What the own share of some work gives; it has to succeed on every process."""
        results: list[Result] = []
        together(self._writers, lambda: results.append(work()))
        return results[0]

    def _read(self, work: Callable[[], Loaded]) -> list[str]:
        """Notes of reading tensors, once every process has all of its own."""
        loaded = self._together(work)
        if loaded.shared is not None:
            loaded.shared.hand_round()
        return loaded.notes

    def _stored_arguments(self) -> dict[str, Any]:
        """The settings of the run that wrote the checkpoint; other programs may not say them."""
        checkpoint = self._checkpoint
        if not checkpoint.is_own:
            self._screen.line(
                "  note: not written by megacore: its files were verified with what checksums they "
                "have"
            )
            if "args" not in checkpoint.values:
                return {}
        return _mapping(checkpoint, "args")

    def _check_architecture(self) -> None:
        mine = self._run.values()
        rows = [
            (name, self._arguments[name], mine[name], "-")
            for name in (*_MUST_MATCH, *(_ADAPTERS_MUST_MATCH if self._of_adapters else ()))
            if name in self._arguments and self._arguments[name] != mine[name]
        ]
        if rows:
            raise CheckpointError(
                f"{self._checkpoint.path} holds another model than the command line describes:\n"
                f"{format_resume_table(rows)}\n"
                "Correct the flags, or pass --use-checkpoint-args to take them from the checkpoint."
            )

    def load(self, learner: Learner, *, vocab_size: int, device: torch.device) -> RunState:
        """Fill the parts from the checkpoint and say which settings changed.

        Random numbers come later, by `restore_rng`, when nothing else draws any more.

        Returns:
            The counters to go on from.
        """
        plan, checkpoint = self._plan, self._checkpoint
        vocabulary = self._vocabulary(vocab_size)
        cast = not plan.load_optimizer
        share = self._groups.dp_cp if self._run.checkpoint.ckpt_fully_parallel_load else None
        notes = self._read(
            lambda: load_model(
                checkpoint,
                learner,
                self._writers,
                cast=cast,
                vocabulary=vocabulary,
                strictness=self._strictness,
                adapters=self._of_adapters,
                share=share,
            )
        )
        used_schedule: dict[str, object] = {}
        if plan.load_optimizer:
            notes += self._load_optimizer(learner, vocabulary)
            schedule = self._run.schedule
            differences = learner.scheduler.load_state(
                _mapping(checkpoint, "scheduler"),
                override=schedule.override_opt_param_scheduler,
                use_checkpoint=schedule.use_checkpoint_opt_param_scheduler,
            )
            used_schedule = {d.name: d.used for d in differences}
        else:
            learner.optimizer.refresh_main_params()
        if learner.fp8 is not None and not plan.weights_only:
            stored = checkpoint.values.get("fp8")
            notes += learner.fp8.load_state(stored if isinstance(stored, Mapping) else {})
        for note in notes:
            self._screen.line(f"  {note}")
        self._report_differences(used_schedule, device)
        self._screen.line(
            f"  successfully loaded checkpoint from {checkpoint.path} [ t 0, p 0 ] "
            f"at iteration {checkpoint.iteration}"
        )
        if plan.weights_only:
            return RunState()
        return RunState.of(_mapping(checkpoint, "counters"))

    def _load_optimizer(self, learner: Learner, vocabulary: VocabularyRows | None) -> list[str]:
        checkpoint = self._checkpoint
        if OPTIMIZER not in checkpoint.groups:
            raise CheckpointError(
                f"{checkpoint.path}: holds no optimizer state (saved with --no-save-optim); "
                "pass --no-load-optim to start with a fresh one"
            )
        notes = self._read(
            lambda: load_optimizer(
                checkpoint,
                learner,
                self._writers,
                vocabulary=vocabulary,
                strictness=self._strictness,
                share=self._run.checkpoint.ckpt_fully_parallel_load,
            )
        )
        learner.optimizer.load_values(_mapping(checkpoint, OPTIMIZER))
        return notes

    def _vocabulary(self, vocab_size: int) -> VocabularyRows | None:
        """Rows that may differ: padding, when the vocabulary is the one of the checkpoint."""
        stored = self._arguments.get("true_vocab_size")
        if stored is None:
            # Other programs do not say it: what is taken for padding is what this run does not use.
            return None if self._checkpoint.is_own else VocabularyRows(size=vocab_size)
        if stored != vocab_size:
            raise CheckpointError(
                f"{self._checkpoint.path}: its vocabulary has {stored} entries, the tokenizer of "
                f"this run {vocab_size}: use the tokenizer that the model was trained with"
            )
        return VocabularyRows(size=vocab_size)

    def _report_differences(
        self, used_schedule: Mapping[str, object], device: torch.device
    ) -> None:
        """What is loaded, which settings differ, and a warning when bits may differ."""
        taken = resume_rows(
            self._plan,
            self._run.checkpoint,
            iteration=self._checkpoint.iteration,
            values=self._checkpoint.values,
            settings=self._run.values(),
            layout=rng_layout(self._groups),
            groups=self._checkpoint.groups,
        )
        self._screen.line("what this run takes from the checkpoint:")
        self._screen.line(format_resume_table(taken))
        about_checkpoints = {field.name for field, _ in flag_fields(CheckpointConfig)}
        mine = self._run.values()
        rows = [
            (name, self._arguments[name], value, value)
            for name, value in mine.items()
            if name in self._arguments
            and name not in about_checkpoints
            and self._arguments[name] != value
        ]
        stored_schedule = self._checkpoint.values.get("scheduler", {})
        rows += [
            (f"schedule {name}", stored_schedule.get(name), "(computed)", used)
            for name, used in used_schedule.items()
        ]
        if rows:
            self._screen.line("settings that differ from those of the checkpoint:")
            self._screen.line(format_resume_table(rows))
        stored = self._checkpoint.values.get("environment")
        if self._plan.load_rng and isinstance(stored, Mapping):
            for name, value in environment(device).items():
                if name in stored and stored[name] != value:
                    self._screen.line(
                        f"note: {name} is {value}, the checkpoint was written with {stored[name]}: "
                        "the run goes on, but not with the bits of an uninterrupted one"
                    )

    def restore_rng(self, stream: RandomStream | None) -> None:
        """Put the random number generators where the checkpoint left them.

        States that belong to another grid of processes are left alone, with a note.

        Args:
            stream: Random stream of a tensor-parallel process, or None.

        Raises:
            CheckpointError: The checkpoint holds no usable state.
        """
        if not self._plan.load_rng:
            return
        checkpoint = self._checkpoint
        if RNG not in checkpoint.groups and not checkpoint.is_own:
            self._screen.line(
                "note: the random states of the checkpoint are those of another program: dropout "
                "goes on from fresh ones"
            )
            return
        if RNG not in checkpoint.groups:
            raise CheckpointError(
                f"{checkpoint.path}: holds no random state (saved with --no-save-rng); "
                "pass --no-load-rng to start with a fresh one"
            )
        mine = rng_layout(self._groups)
        if checkpoint.values.get("rng_layout", [[1, 0]] * len(mine)) != mine:
            self._screen.line(
                "note: the checkpoint was written by another layout of processes: dropout goes on "
                "from fresh random states (nothing else depends on them)"
            )
            return
        values = _mapping(checkpoint, RNG)
        self._together(lambda: restore_rng_of(checkpoint, values, self._groups, stream))


def _mapping(checkpoint: Checkpoint, key: str) -> dict[str, Any]:
    value = checkpoint.values.get(key)
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{checkpoint.path}: common.pt has no object {key!r}; found {type(value).__name__}"
        )
    return value
