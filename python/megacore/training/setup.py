"""Builds the parts of a run, in an order that makes restarts exact.

Whatever draws from the global random generators between the start and the first iteration would
differ between a fresh and a resumed run, so a checkpoint's random state is restored last.
"""

from __future__ import annotations

import logging as python_logging
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch

from megacore.checkpoint import ResumePlan, SaveDirectory, decide
from megacore.config.layers import Origin
from megacore.config.report import format_arguments
from megacore.data.tokenizers import Tokenizer, build_tokenizer, padded_vocab_size
from megacore.ops.library import use_references
from megacore.optim import MicrobatchCalculator
from megacore.parallel.apply import ParallelModel
from megacore.parallel.context import local_batch
from megacore.parallel.groups import ParallelGroups
from megacore.parallel.random_streams import RandomStream, tensor_stream
from megacore.training.agreement import gathered
from megacore.training.background_saver import BackgroundSaver
from megacore.training.batches import Batches, build_batches, samples_wanted
from megacore.training.checkpoint_parts import GroupWriters
from megacore.training.checkpoints import Checkpoints, stored_arguments
from megacore.training.families import family_of
from megacore.training.family import Family
from megacore.training.finetune import adapted_start
from megacore.training.footprint import Footprint
from megacore.training.learner import (
    Learner,
    build_learner,
    build_model,
    parameter_dtype,
    plan_stages,
)
from megacore.training.live_view import Screen
from megacore.training.log_line import format_moment
from megacore.training.outputs import open_outputs
from megacore.training.passes import Passes
from megacore.training.peak import Peak, peak_speed
from megacore.training.pipeline_trace import PipelineTraces
from megacore.training.profiling import Profiler, profile_directory
from megacore.training.reporting import Reporter
from megacore.training.resume import Resume
from megacore.training.run_config import RunConfig
from megacore.training.run_state import RunState
from megacore.training.saver import DirectSaver, Saver, save_paths
from megacore.training.seeding import rank_seed, seed_everything, torch_rng_preserved
from megacore.training.signals import TermSignal
from megacore.training.speed import SpeedModel
from megacore.training.step import StepPolicy, TrainStep
from megacore.training.timers import Timers
from megacore.training.trainer import Parts, Trainer

SETUP_TIMERS = ("model-and-optimizer-setup", "train/valid/test-data-iterators-setup")


class Setup:
    """Builds a trainer from a configuration.

    Args:
        run: Resolved settings.
        groups: The groups of this process.
        device: Where this process trains.
        stack: Closes what is opened: the claim on the save directory, the writers.
        screen: Prints lines.
        term: Notes SIGTERM.
        started: When the process started.
        origins: Where each setting came from.
        dtype: Of parameters and activations; by default what the settings say.
        family: What is trained; by default what the settings name.
    """

    def __init__(
        self,
        run: RunConfig,
        *,
        groups: ParallelGroups,
        device: torch.device,
        stack: ExitStack,
        screen: Screen,
        term: TermSignal,
        started: datetime,
        origins: Mapping[str, Origin] | None = None,
        dtype: torch.dtype | None = None,
        family: Family[Any] | None = None,
    ) -> None:
        self._run = run
        self._family = family or family_of(run)
        self._groups = groups
        self._device = device
        self._stack = stack
        self._screen = screen
        self._term = term
        self._started = started
        self._origins = origins or {}
        self._dtype = dtype or parameter_dtype(run.precision)
        self._stream: RandomStream | None = None
        if groups.tp.size > 1:
            self._stream = tensor_stream(self._seed, groups.tp.rank, device)
        self._batch_sizes = MicrobatchCalculator(run.batch, groups.dp.size)
        self._train_iters = self._count_iterations()
        self._timers = Timers(
            level=run.logging.timing_log_level,
            option=run.logging.timing_log_option,
            device=device,
            group=groups.world,
        )

    @property
    def _seed(self) -> int:
        """Seed of this process's default generators."""
        groups = self._groups
        return rank_seed(
            self._run.training.seed,
            pipeline_rank=groups.pp.rank,
            context_parallel_rank=groups.cp.rank,
        )

    def _count_iterations(self) -> int:
        training = self._run.training
        if training.train_samples is not None:
            return self._batch_sizes.iterations(training.train_samples)
        return training.train_iters or 0

    def build(self) -> Trainer:
        """Everything, ready for the first iteration.

        Raises:
            MegacoreError: Data, tokenizer or checkpoint cannot be used; the message names it.
        """
        run, screen = self._run, self._screen
        if run.logging.logging_level is not None:
            python_logging.getLogger("megacore").setLevel(run.logging.logging_level)
        use_references(run.kernels.kernels == "reference")
        screen.line(format_arguments(run))
        plan = decide(run.checkpoint)
        for warning in plan.warnings:
            screen.line(warning)
        start = adapted_start(run, plan) if run.lora.is_on else None
        plan = plan if start is None else start.plan
        saver = self._saver(plan)
        base = None if start is None else self._resume(start.base_plan)
        resume = None if plan.source is None else self._resume(plan)
        seed_everything(self._seed)
        tokenizer, rows = self._vocabulary()
        screen.line(format_moment("after megacore is initialized"))

        learner, state = self._learner(base, resume, tokenizer.vocab_size, rows)
        message = "after model, optimizer, and learning rate scheduler are built"
        screen.line(format_moment(message))
        with self._timers.time(SETUP_TIMERS[1]), torch_rng_preserved(self._device):
            wanted = samples_wanted(
                run,
                train_iters=self._train_iters,
                batch_size=self._batch_sizes.max_global_batch_size,
            )
            batches = build_batches(
                run,
                tokenizer,
                family=self._family,
                state=state,
                wanted=wanted,
                vocab_rows=rows,
                groups=self._groups,
                device=self._device,
                say=screen.line,
            )
        screen.line(format_moment("after dataloaders are built"))
        screen.line("done with setup ...")
        self._print_timers(*SETUP_TIMERS)

        parts = self._parts(
            learner,
            batches,
            state,
            {
                **stored_arguments(run, vocab_size=tokenizer.vocab_size, padded_vocab_size=rows),
                **({} if start is None else start.arguments),
            },
            saver,
        )
        if resume is not None:
            resume.restore_rng(self._stream)
        return Trainer(
            parts, run=run, state=state, train_iters=self._train_iters, started=self._started
        )

    def _resume(self, plan: ResumePlan) -> Resume:
        return Resume(
            plan, run=self._run, groups=self._groups, device=self._device, screen=self._screen
        )

    def _saver(self, plan: ResumePlan) -> Saver | None:
        """What saves, before any work is done that could not be kept: it claims the directories."""
        checkpoint = self._run.checkpoint
        if checkpoint.save is None or self._run.training.skip_train:
            return None
        start = None if checkpoint.overwrite_newer_checkpoints else plan.iteration
        if checkpoint.async_save:
            return BackgroundSaver(
                checkpoint,
                start_iteration=start,
                group=self._groups.world,
                device=self._device,
                say=self._screen.line,
                stack=self._stack,
            )
        writers = GroupWriters(self._groups.world, self._device)
        directories = []
        for path in save_paths(checkpoint):
            directory = self._stack.enter_context(SaveDirectory(path, writers=writers))
            if start is not None:
                directory.refuse_newer(start)
            directories.append(directory)
        return DirectSaver(checkpoint, directories)

    def _vocabulary(self) -> tuple[Tokenizer, int]:
        """The tokenizer, and the rows of the word embedding."""
        tokenizer = build_tokenizer(self._run.tokenizer)
        size = tokenizer.vocab_size
        rows = padded_vocab_size(
            size, make_divisible_by=self._run.model.make_vocab_size_divisible_by
        )
        self._screen.line(
            f" > padded vocab (size: {size}) with {rows - size} dummy tokens (new size: {rows})"
        )
        return tokenizer, rows

    def _learner(
        self, base: Resume | None, resume: Resume | None, vocab_size: int, rows: int
    ) -> tuple[Learner, RunState]:
        run, state = self._run, RunState()
        with self._timers.time(SETUP_TIMERS[0]):
            # Rows of the embedding that a checkpoint lacks keep these initial values.
            plan = plan_stages(run, self._batch_sizes, self._groups)
            model = build_model(
                run,
                self._groups,
                make=self._family.make_model,
                plan=plan,
                padded_vocab_size=rows,
                device=self._device,
                dtype=self._dtype,
                stream=self._stream,
            )
            self._print_parameters(model)
            learner = build_learner(run, model, self._batch_sizes, self._groups)
            if base is not None:
                with self._timers.time("load-checkpoint"):
                    base.load(learner, vocab_size=vocab_size, device=self._device)
            if resume is not None:
                with self._timers.time("load-checkpoint"):
                    state = resume.load(learner, vocab_size=vocab_size, device=self._device)
        self._screen.line(
            f" > memory of training state on rank 0: {learner.optimizer.memory_report()}"
        )
        self._print_timers("load-checkpoint")
        return learner, state

    def _print_parameters(self, model: ParallelModel) -> None:
        groups = self._groups
        row = [groups.tp.rank, groups.pp.rank, model.num_parameters]
        for tensor, pipeline, count in sorted(gathered(row, groups.model, self._device)):
            self._screen.line(
                " > number of parameters on (tensor, pipeline) model parallel rank "
                f"({tensor:.0f}, {pipeline:.0f}): {count:.0f}"
            )

    def _parts(
        self,
        learner: Learner,
        batches: Batches,
        state: RunState,
        arguments: Mapping[str, Any],
        saver: Saver | None,
    ) -> Parts:
        """Puts the parts together, with those that watch and keep: reporter, checkpoints."""
        run, training = self._run, self._run.training
        outputs = open_outputs(
            run,
            stack=self._stack,
            state=state,
            arguments=arguments,
            started=self._started,
            rank=self._groups.rank,
            world_size=self._groups.world_size,
        )
        speed = self._speed(arguments["padded_vocab_size"])
        profiler = self._profiler()
        reporter = Reporter(
            run.logging,
            screen=self._screen,
            outputs=outputs,
            timers=self._timers,
            speed=speed,
            device=self._device,
            train_iters=self._train_iters,
            footprint=self._footprint(),
            groups=self._groups,
        )
        if not training.skip_train:
            batch_size = self._batch_sizes.max_global_batch_size
            reporter.start(state, arguments, origins=self._origins, batch_size=batch_size)
        passes = Passes(
            learner,
            family=self._family,
            run=run,
            groups=self._groups,
            device=self._device,
            timers=self._timers,
            profiler=profiler,
            pipeline_traces=PipelineTraces(
                profiler,
                group=self._groups.pp,
                device=self._device,
                directory=self._profile_directory,
                say=self._screen.line,
            ),
            cut=partial(local_batch, group=self._groups.cp) if self._groups.cp.size > 1 else None,
        )
        policy = StepPolicy(
            per_token_loss=training.calculate_per_token_loss,
            count_zeros=run.logging.log_num_zeros_in_grad,
            dynamic_loss_scale=run.precision.fp16 and not run.precision.loss_scale,
            trace_nan=training.trace_nan,
            empty_cache_level=training.empty_unused_memory_level,
        )
        return Parts(
            learner=learner,
            batch_sizes=self._batch_sizes,
            step=TrainStep(
                learner,
                family=self._family,
                passes=passes,
                policy=policy,
                groups=self._groups,
                device=self._device,
                timers=self._timers,
                profiler=profiler,
            ),
            passes=passes,
            batches=batches,
            checkpoints=Checkpoints(
                run.checkpoint,
                saver=saver,
                learner=learner,
                arguments=arguments,
                groups=self._groups,
                stream=self._stream,
                device=self._device,
                outputs=outputs,
                screen=self._screen,
            ),
            reporter=reporter,
            speed=speed,
            profiler=profiler,
            timers=self._timers,
            screen=self._screen,
            term=self._term,
            groups=self._groups,
            device=self._device,
        )

    def _speed(self, vocab_rows: int) -> SpeedModel:
        run = self._run
        shape = self._family.shape(run, padded_vocab=vocab_rows)
        peak = Peak(1.0, "not used: only the first process shows speeds")
        if self._groups.world.is_first:
            peak = peak_speed(self._device, self._dtype, given=run.logging.peak_tflops)
        return SpeedModel(
            shape=shape,
            recompute=run.recompute,
            peak=peak,
            world_size=self._groups.world_size,
        )

    def _footprint(self) -> Footprint:
        groups, sizes = self._groups, self._batch_sizes
        micro_batch_size = self._run.batch.micro_batch_size or 1
        return Footprint(
            micro_batch_size=micro_batch_size,
            num_microbatches=sizes.max_global_batch_size // (micro_batch_size * groups.dp.size),
            tensor_parallel=groups.tp.size,
            pipeline_parallel=groups.pp.size,
            context_parallel=groups.cp.size,
            stages_per_process=self._run.parallel.stages_per_rank(self._run.model.total_depth or 1),
            sharded=groups.dp_cp.size if self._run.parallel.shards_optimizer else 1,
        )

    @property
    def _profile_directory(self) -> Path:
        run = self._run
        return profile_directory(
            tensorboard_dir=run.logging.tensorboard_dir, save=run.checkpoint.save
        )

    def _profiler(self) -> Profiler:
        return Profiler(
            self._run.profile,
            device=self._device,
            rank=self._groups.rank,
            directory=self._profile_directory,
            # The screens of the other processes are silent, but each may have a profile of its own.
            say=self._screen.line if self._groups.world.is_first else print,
        )

    def _print_timers(self, *names: str) -> None:
        report = self._timers.report(names)
        if report is not None:
            self._screen.line(report)
