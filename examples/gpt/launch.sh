#!/usr/bin/env bash
# Starts pretrain_gpt.py with the given flags: on this machine, or on every node of a Slurm job.
#
#   GPUS_PER_NODE   processes on each node (8)
#   PYTHON          Python that has megacore (python)
#   MASTER_PORT     free port of the first node, for the processes to find each other (29500)
#   DATA_ARGS       where the data is: --data-path ... --tokenizer-type ... and so on;
#                   without it the run trains on made-up tokens, to measure speed and memory
#
# With --simulate-world N among the flags nothing is trained: one process checks the command line
# of an N-process run and reports memory and communication. No GPU is needed for that.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python}"
read -r -a data <<<"${DATA_ARGS:---mock-data --tokenizer-type NullTokenizer --vocab-size 51199}"
program=("${root}/pretrain_gpt.py" "${data[@]}" "$@")

for argument in "$@"; do
    if [[ "${argument}" == --simulate-world* ]]; then
        exec "${python}" "${program[@]}"
    fi
done

torchrun=("${python}" -m torch.distributed.run --nproc-per-node "${GPUS_PER_NODE:-8}")
if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
    first="$(scontrol show hostnames "${SLURM_JOB_NODELIST}" | head -n 1)"
    exec srun --ntasks-per-node 1 "${torchrun[@]}" --nnodes "${SLURM_JOB_NUM_NODES}" \
        --rdzv-backend c10d --rdzv-id "${SLURM_JOB_ID}" \
        --rdzv-endpoint "${first}:${MASTER_PORT:-29500}" "${program[@]}"
fi
exec "${torchrun[@]}" --standalone "${program[@]}"
