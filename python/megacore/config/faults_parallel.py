"""The faults of parallelism; part of the registry in `faults`."""

from __future__ import annotations

from megacore.config.fault_rule import Rule

PARALLEL_RULES: dict[str, Rule] = {
    "MC0901": Rule(
        "The degrees of parallelism must divide the number of processes",
        "Tensor * context * pipeline processes hold one copy of the model together; the rest of "
        "the processes are whole copies (data parallelism).",
        "Start another number of processes, or change a degree.",
    ),
    "MC0902": Rule(
        "--order and --use-tp-pp-dp-mapping both name the order of the axes",
        "The second is short for `--order tp-pp-dp`.",
        "Keep one of them.",
    ),
    "MC0903": Rule(
        "The order of the axes does not fit",
        "`--order` lists tp, cp, ep, dp and pp, each once, joined by dashes, the axis that varies "
        "fastest from rank to rank first. Axes of degree 1 may be left out.",
        "Correct the order, for example `--order tp-cp-ep-dp-pp`.",
    ),
    "MC0904": Rule(
        "--simulate-world runs in one process",
        "It looks at one rank after the other of a job that does not run.",
        "Start it without a launcher.",
    ),
    "MC0905": Rule(
        "All processes must be started with the same flags",
        "One process computes something else than the others, or waits for something they never "
        "send. The message names the processes that differ from process 0.",
        "Start all processes with one command line and one set of files.",
    ),
    "MC0906": Rule(
        "The backend of torch.distributed is not there",
        "`nccl` needs a PyTorch with CUDA and a GPU for every process of a machine; `gloo` works "
        "on CPUs.",
        "Use `--distributed-backend gloo`, or a machine and a PyTorch with CUDA.",
    ),
    "MC0907": Rule(
        "Several processes need MASTER_ADDR and MASTER_PORT",
        "That is where they meet. torchrun sets both; under srun they are derived from the "
        "job's list of nodes where they are not set.",
        "Start through torchrun, or set both to the address of process 0 and a free port.",
    ),
    "MC0911": Rule(
        "--sequence-parallel needs tensor parallelism",
        "It splits activations over the tensor-parallel processes.",
        "Raise `--tensor-model-parallel-size` or remove it.",
    ),
    "MC0912": Rule(
        "--tp-comm-overlap needs --sequence-parallel",
        "What it overlaps are the all-gathers and reduce-scatters of sequence parallelism.",
        "Add `--sequence-parallel` or remove it.",
    ),
    "MC0913": Rule(
        "--distribute-saved-activations needs full recompute and tensor parallelism alone",
        "It splits the kept inputs of recomputed layers over the tensor-parallel processes. With "
        "`--sequence-parallel` they are split already.",
        "Add what is missing, or remove the flag.",
    ),
    "MC0914": Rule(
        "Tensor parallelism must divide what it splits",
        "Every tensor-parallel process computes equally many attention heads, key/value groups "
        "and feed-forward channels.",
        "Change the size or `--tensor-model-parallel-size`.",
    ),
    "MC0915": Rule(
        "--seq-length cannot be split into equal parts",
        "Context parallelism gives every process two chunks of 2 * cp, one early and one late, so "
        "that all have equally much attention; sequence parallelism splits each process's part "
        "again by tp.",
        "Change `--seq-length` or the degree.",
    ),
    "MC0916": Rule(
        "--cp-comm-type a2a must divide the attention heads",
        "Context-parallel processes exchange heads: each needs a whole number of the key/value "
        "heads of a tensor-parallel process.",
        "Use `--cp-comm-type p2p`, or a smaller `--context-parallel-size`.",
    ),
    "MC0921": Rule(
        "Flags of the pipeline need more than one pipeline rank",
        "Without stages there is no schedule.",
        "Raise `--pipeline-model-parallel-size` or remove them.",
    ),
    "MC0922": Rule(
        "--pipeline-schedule-file excludes flags that name a schedule",
        "The file says which stage runs what where.",
        "Keep one of them.",
    ),
    "MC0923": Rule(
        "--pipeline-schedule interleaved and --num-layers-per-virtual-pipeline-stage belong "
        "together",
        "The number of layers of a virtual stage says how many stages a rank has; the other "
        "schedules have a fixed number of stages per rank.",
        "Give both or neither.",
    ),
    "MC0924": Rule(
        "Only pipelines of one stage per rank can have uneven stages",
        "The layers of the first or the last stage can differ where each rank has one stage, and "
        "one flag must say it.",
        "Remove the flags, or choose `--pipeline-schedule` 1f1b, gpipe, zb-h1 or zb-h2.",
    ),
    "MC0925": Rule(
        "The layers cannot be divided among the pipeline stages",
        "Every stage, apart from the named exceptions, has equally many layers.",
        "Change `--num-layers`, the number of stages, or give the first or last stage another "
        "number with `--decoder-first-pipeline-num-layers` or "
        "`--decoder-last-pipeline-num-layers`.",
    ),
    "MC0926": Rule(
        "The pipeline schedule cannot be made for these ranks and microbatches",
        "Microbatches of a step = global batch / (micro-batch * replicas). The message "
        "says what the schedule needs.",
        "Change the batch sizes, or choose another schedule.",
    ),
    "MC0931": Rule(
        "--overlap-param-gather needs the distributed optimizer and --overlap-grad-reduce",
        "Only split parameters are gathered, and the buckets are those of the reduction.",
        "Add `--use-distributed-optimizer --overlap-grad-reduce`, or remove it.",
    ),
    "MC0932": Rule(
        "--num-distributed-optimizer-instances must divide the replicas of a sharded optimizer",
        "Each instance is a group of replicas that hold one whole copy of the optimizer state.",
        "Choose a divisor of the number of replicas (times context parallelism), and "
        "`--use-distributed-optimizer`.",
    ),
    "MC0933": Rule(
        "Sharded gradients need a pipeline schedule with whole backward passes",
        "They are reduced when the backward pass of a micro-batch has made them, which a schedule "
        "that computes weight gradients later does not tell.",
        "Choose `--pipeline-schedule` 1f1b, gpipe or interleaved, or "
        "`--data-parallel-sharding-strategy optim`.",
    ),
}
