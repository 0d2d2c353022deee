"""`megacore evaluate NAME`, and tasks/main.py with the flag --task NAME."""

from __future__ import annotations

from megacore.errors import EXIT_OK
from megacore.evaluation.settings import TaskRun, parse_task


def main(argv: list[str]) -> int:
    """Run the command.

    Args:
        argv: Flags, or the name of a task and flags.

    Returns:
        Exit code 0; failures are raised.
    """
    words = ["--task", argv[0].upper(), *argv[1:]] if argv and argv[0][:1] != "-" else argv
    evaluation = parse_task(words)
    if evaluation.task.is_zero_shot:
        return _zero_shot(evaluation)
    if not evaluation.task.is_finetuning:
        return _retrieval(evaluation)
    from megacore.evaluation.finetuning import finetune

    return finetune(evaluation)


def _zero_shot(evaluation: TaskRun) -> int:
    # torch takes a second to import; faults of the command line are reported before that.
    from megacore.evaluation.zero_shot import evaluate_zero_shot
    from megacore.parallel.launch import current_process, meeting_point
    from megacore.parallel.startup import parallel_groups
    from megacore.training.pretrain import training_device

    run, task = evaluation.run, evaluation.task
    with parallel_groups(
        run.parallel,
        process=current_process(),
        meeting_point=meeting_point,
        settings={**run.values(), "task": task.task},
    ) as groups:

        def say(text: str) -> None:
            if groups.world.is_first:
                print(text, flush=True)

        result = evaluate_zero_shot(evaluation, groups=groups, device=training_device(run), say=say)
        line = f" validation results on {task.task} | {result}"
        rule = "-" * (len(line) + 1)
        say(f"{rule}\n{line}\n{rule}")
    return EXIT_OK


def _retrieval(evaluation: TaskRun) -> int:
    from megacore.evaluation.retrieval.commands import evaluate_retriever

    return evaluate_retriever(evaluation.run, evaluation.retrieval)
