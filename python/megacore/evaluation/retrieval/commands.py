"""`megacore index-evidence` (tools/create_doc_index.py), and the tasks that use the index."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megacore.config.faults import fault, required
from megacore.config.parser import merge_faults, read_layers, show_notes
from megacore.config.report import format_config
from megacore.config.settings import value_faults
from megacore.errors import EXIT_OK, Information
from megacore.evaluation.retrieval.config import BiencoderConfig, RetrievalConfig
from megacore.evaluation.settings import without_own
from megacore.parallel.launch import launched_world_size
from megacore.training.run_config import RunConfig, config_types

if TYPE_CHECKING:
    from megacore.evaluation.retrieval.loading import Encoders


def index_evidence(argv: list[str]) -> int:
    """Makes the vectors of all evidence.

    Args:
        argv: Flags; what is not needed is accepted, so that the flags of training can be given.

    Returns:
        Exit code 0.

    Raises:
        ConfigError: Every fault of the flags.
        CheckpointError, DataError: Something cannot be read.
    """
    types = config_types()
    parsed, faults, doubtful = read_layers(
        [RetrievalConfig, BiencoderConfig, *types.values()],
        argv,
        prog="megacore index-evidence",
        description="Make the vectors of evidence that a retriever searches.",
        megatron=True,
    )
    faults = without_own(faults, (RetrievalConfig, BiencoderConfig))
    run = RunConfig(**{name: parsed.configs[kind] for name, kind in types.items()})
    retrieval: RetrievalConfig = parsed.configs[RetrievalConfig]
    for component in (*run.components, retrieval):
        faults.extend(value_faults(component))
    for name, value in (
        ("--load", run.checkpoint.load),
        ("--evidence-data-path", retrieval.evidence_data_path),
        ("--embedding-path", retrieval.embedding_path),
    ):
        if value is None:
            faults.append(required(name))
    size = launched_world_size()
    if size > 1:
        faults.append(fault("MC1347", {"processes": size}, allowed="1"))
    merge_faults(faults, doubtful)
    show_notes(parsed.notes)
    if parsed.print_config:
        raise Information(format_config([retrieval, *run.components], parsed.origins))

    from megacore.evaluation.retrieval.evidence import read_evidence
    from megacore.evaluation.retrieval.indexing import build_index

    evidence = read_evidence(retrieval.evidence_data_path or "")
    print(f"{len(evidence)} passages in {retrieval.evidence_data_path}", flush=True)
    path = Path(retrieval.embedding_path or "")
    build_index(
        _encoders(run, retrieval),
        evidence,
        path,
        batch_size=retrieval.indexer_batch_size,
        batches_per_piece=retrieval.indexer_log_interval,
        say=lambda text: print(text, flush=True),
    )
    print(f"wrote {path}")
    return EXIT_OK


def evaluate_retriever(run: RunConfig, retrieval: RetrievalConfig) -> int:
    """Prints how often an answer is among the best passages, for each file of questions.

    Args:
        run: Says which checkpoint.
        retrieval: Evidence, index and questions.

    Returns:
        Exit code 0.

    Raises:
        CheckpointError, DataError: Something cannot be read, or does not fit together.
    """
    from megacore.evaluation.retrieval.accuracy import report, retriever_accuracy
    from megacore.evaluation.retrieval.evidence import read_evidence, read_questions
    from megacore.evaluation.retrieval.store import EmbeddingStore

    files = {"DEV": retrieval.qa_data_dev, "TEST": retrieval.qa_data_test}
    questions = {name: read_questions(path) for name, path in files.items() if path}
    evidence = read_evidence(retrieval.evidence_data_path or "")
    store = EmbeddingStore.load(Path(retrieval.embedding_path or ""))
    encoders = _encoders(run, retrieval)
    for name, asked in questions.items():
        shares = retriever_accuracy(
            encoders,
            store,
            evidence,
            asked,
            match=retrieval.faiss_match,
            count=retrieval.faiss_topk_retrievals,
            reported=retrieval.retriever_report_topk_accuracies,
            batch_size=run.batch.micro_batch_size or 8,
        )
        report(name, shares, lambda text: print(text, flush=True))
    return EXIT_OK


def _encoders(run: RunConfig, retrieval: RetrievalConfig) -> Encoders:
    # torch takes a second to import; faults of the command line are reported before that.
    import torch

    from megacore.evaluation.retrieval.loading import load_encoders

    return load_encoders(
        run.checkpoint.load or "",
        step=run.checkpoint.ckpt_step,
        length=retrieval.retriever_seq_length,
        device="cuda" if torch.cuda.is_available() else "cpu",
    )
