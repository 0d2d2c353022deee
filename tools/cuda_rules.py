"""What every CUDA kernel promises, as `cuda_check.py` holds it against the machine code.

A kernel that is not listed fails the check. "Narrow" accesses are those of less than 16 bytes to
global memory; a kernel that promises wide ones may have as many narrow ones as are listed, for the
reason that is listed.
"""

from __future__ import annotations

import dataclasses
import re

ANY = 1 << 30


@dataclasses.dataclass(frozen=True)
class Rule:
    """The promise of the instantiations of one kernel.

    Attributes:
        kernel: Name without template arguments.
        threads: Threads of its largest block.
        wide: Matches the template arguments of instantiations whose main accesses have 16 bytes.
            None: the kernel promises no width.
        loads: Narrow loads of such an instantiation, at most.
        stores: Narrow stores.
        why: What the narrow accesses are for.
        moved: Bytes per element that the kernel moves, in bfloat16 unless it says otherwise.
        minimum: Bytes per element that its contract cannot do without.
        dynamic_bytes: Dynamic shared memory of a block.
    """

    kernel: str
    threads: int
    wide: str | None = None
    loads: int = 0
    stores: int = 0
    why: str = ""
    moved: str = ""
    minimum: str = ""
    dynamic_bytes: int = 0

    def promises(self, arguments: str) -> bool:
        """Whether an instantiation with these template arguments must be wide."""
        return self.wide is not None and re.search(self.wide, arguments) is not None


RULES = (
    # Bound by arithmetic. Rows of heads come by 16-byte asynchronous copies where they are aligned;
    # results, a small share of what is moved, are written as the matrix registers hold them.
    Rule("attention_forward_kernel", 128, moved="-", dynamic_bytes=101376),
    Rule("attention_join_kernel", 128, why="partial results of one row", moved="-"),
    Rule("attention_delta_kernel", 128, why="one row a warp", moved="4", minimum="4"),
    Rule("attention_keys_kernel", 128, moved="-", dynamic_bytes=135168),
    Rule("attention_queries_kernel", 128, moved="-", dynamic_bytes=135168),
    Rule(
        "activation_forward_kernel", 128, wide=r", [48], ", moved="4 (gated 3)",
        minimum="4 (gated 3)",
    ),
    Rule(
        "activation_backward_kernel", 128, wide=r", [48], ", moved="6 (gated 5)",
        minimum="6 (gated 5)",
    ),
    Rule(
        "adamw_kernel", 256, wide=r", 4$", loads=5, stores=5,
        why="up to 3 elements behind the last vector; a 16-bit copy of 4 elements is 8 bytes",
        moved="30 (28 without copy)", minimum="30 (28 without copy)",
    ),
    Rule("column_sums_kernel", 256, why="partial sums, a share of the rows", moved="-"),
    Rule(
        "cross_entropy_backward_kernel", 512, wide=r", [48]$", loads=5,
        why="label, maximum, factor, label's and uniform share, once a row",
        moved="4", minimum="4",
    ),
    Rule(
        "cross_entropy_forward_kernel", 512, wide=r", [48]$", loads=2, stores=4,
        why="label and its logit; the four sums of a row", moved="2", minimum="2",
    ),
    Rule(
        "dropout_add_kernel", 256, wide=r", [48]$", loads=3, stores=2,
        why="elements behind the last vector", moved="6 (4 without residual)",
        minimum="6 (4 without residual)",
    ),
    Rule(
        "embedding_backward_kernel", 128, wide=r", [48]$", loads=3,
        why="sorted rows and order, 8 bytes each", moved="2 a token, 2 a row of the table",
        minimum="the same",
    ),
    Rule(
        "norm_forward_kernel", 1024, wide=r", [48], \d, ", loads=12, stores=2,
        why="16-bit weights of float32 rows are 8 bytes; mean and rstd of a row",
        moved="4", minimum="4",
    ),
    Rule(
        "norm_backward_kernel", 512, wide=r", [48], \d, ", loads=10, stores=0,
        why="16-bit weights of float32 rows are 8 bytes; mean and rstd of a row",
        moved="6", minimum="6",
    ),
    Rule(
        "fp8_quantize_kernel", 256, wide=r", [48]$", loads=1, stores=ANY,
        why="the scale; codes of 4 or 8 elements, transposed ones a byte a thread",
        moved="3 (4 with transpose)", minimum="3 (4 with transpose)",
    ),
    Rule(
        "fp8_quantize_blocks_kernel", 256, why="blocks of any alignment",
        moved="5, 2 of them from caches", minimum="3",
    ),
    Rule("norm_reduce_kernel", 256, why="partial sums, a share of the rows", moved="-"),
    Rule(
        "sgd_kernel", 256, wide=r", 4$", loads=3, stores=5,
        why="elements behind the last vector; a 16-bit copy of 4 elements is 8 bytes",
        moved="22 (14 without momentum)", minimum="22 (14 without momentum)",
    ),
    Rule(
        "square_sum_kernel", 128, wide=r", [48]$", loads=1, stores=1,
        why="elements behind the last vector; the sum of a block", moved="2", minimum="2",
    ),
    Rule("square_sum_total_kernel", 256, why="one sum for 2048 elements", moved="-"),
    Rule(
        "softmax_forward_kernel", 512, wide=r", [48]$", loads=ANY,
        why="masks of one byte an element", moved="4", minimum="4",
    ),
    Rule(
        "softmax_backward_kernel", 512, wide=r", [48]$", loads=ANY,
        why="masks of one byte an element", moved="6", minimum="6",
    ),
    Rule("rotary_kernel", 256, wide=r"^[^,]+, [48], ", moved="4", minimum="4"),
)  # fmt: skip

BY_KERNEL = {rule.kernel: rule for rule in RULES}
