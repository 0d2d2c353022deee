"""Settings of two-tower retrieval: its model, its evidence and the index."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from megacore.config.fields import flag


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """How evidence is indexed and searched."""

    GROUP: ClassVar[str] = "retrieval"

    evidence_data_path: str | None = flag(
        "--evidence-data-path",
        default=None,
        help="table of evidence with the columns id, text and title",
    )
    embedding_path: str | None = flag(
        "--embedding-path", default=None, help="file of the vectors of all evidence"
    )
    retriever_seq_length: int = flag(
        "--retriever-seq-length",
        default=256,
        help="tokens of a question or of a passage",
        bounds="[4, inf)",
    )
    indexer_batch_size: int = flag(
        "--indexer-batch-size", default=128, help="passages in one pass", bounds="[1, inf)"
    )
    indexer_log_interval: int = flag(
        "--indexer-log-interval",
        default=1000,
        help="batches between two lines of progress, and two files that a restart finds",
        bounds="[1, inf)",
    )
    qa_data_dev: str | None = flag(
        "--qa-data-dev", default=None, help="questions and answers to develop with"
    )
    qa_data_test: str | None = flag(
        "--qa-data-test", default=None, help="questions and answers to test with"
    )
    faiss_match: str = flag(
        "--faiss-match",
        default="string",
        choices=("regex", "string"),
        help="whether an answer is a pattern or words",
    )
    faiss_topk_retrievals: int = flag(
        "--faiss-topk-retrievals",
        default=100,
        help="passages that are looked at for a question",
        bounds="[1, inf)",
    )
    retriever_report_topk_accuracies: tuple[int, ...] = flag(
        "--retriever-report-topk-accuracies",
        default=(),
        nargs="+",
        help="how many passages may hold the answer",
        bounds="[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class BiencoderConfig:
    """The two encoders and what they start from."""

    GROUP: ClassVar[str] = "biencoder"

    biencoder_projection_dim: int = flag(
        "--biencoder-projection-dim",
        default=0,
        help="width of a projection behind each encoder; 0: none",
        bounds="[0, inf)",
    )
    biencoder_shared_query_context_model: bool = flag(
        "--biencoder-shared-query-context-model",
        default=False,
        help="one encoder for questions and for blocks of text",
    )
    bert_load: str | None = flag(
        "--bert-load", default=None, help="checkpoint of the BERT that both encoders start from"
    )
    retriever_score_scaling: bool = flag(
        "--retriever-score-scaling",
        default=False,
        help="inner products are divided by the square root of the hidden size",
    )
