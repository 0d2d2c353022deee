#!/usr/bin/env bash
# BERT with 340 million parameters: one machine with 8 GPUs, or several.
#
#   train_bert_340m_distributed.sh [--smoke] [CHECKPOINTS TENSORBOARD VOCAB DATA]
#
# The four places may be given as words, in this order, or in the environment:
#   CHECKPOINT_PATH        where checkpoints go, and where a run continues from
#   TENSORBOARD_LOGS_PATH  where event files go
#   VOCAB_FILE             WordPiece vocabulary, a token per line
#   DATA_PATH              prefix of sentences tokenised by tools/preprocess_data.py
#                          --split-sentences (.bin and .idx)
# and
#   GPUS_PER_NODE (8), NUM_NODES (1), NODE_RANK (0), MASTER_ADDR (localhost), MASTER_PORT (6000)
#   PYTHON                 Python that has megacore (python)
#   EXTRA_ARGS             further flags; the last one of a kind counts
#
# --smoke: a tiny model on made-up sentences in one process, seconds on a CPU; nothing is needed.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
python="${PYTHON:-python}"
read -r -a extra <<<"${EXTRA_ARGS:-}"

if [[ "${1:-}" == --smoke ]]; then
    folder="$(mktemp -d)"
    trap 'rm -rf "${folder}"' EXIT
    {
        printf '%s\n' '[PAD]' '[UNK]' '[CLS]' '[SEP]' '[MASK]'
        printf '%s\n' {a..z} '##'{a..z}
    } >"${folder}/vocab.txt"
    "${python}" "${root}/pretrain_bert.py" \
        --num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 \
        --max-position-embeddings 64 \
        --micro-batch-size 2 --global-batch-size 4 --train-iters 10 --lr 1e-3 \
        --mock-data --vocab-file "${folder}/vocab.txt" \
        --log-interval 1 --eval-interval 10 --eval-iters 2 "${extra[@]}"
    exit
fi

CHECKPOINT_PATH="${1:-${CHECKPOINT_PATH:?where checkpoints go}}"
TENSORBOARD_LOGS_PATH="${2:-${TENSORBOARD_LOGS_PATH:?where event files go}}"
VOCAB_FILE="${3:-${VOCAB_FILE:?WordPiece vocabulary}}"
DATA_PATH="${4:-${DATA_PATH:?prefix of the data}}"

distributed=(
    --nproc-per-node "${GPUS_PER_NODE:-8}"
    --nnodes "${NUM_NODES:-1}"
    --node-rank "${NODE_RANK:-0}"
    --master-addr "${MASTER_ADDR:-localhost}"
    --master-port "${MASTER_PORT:-6000}"
)
model=(
    --num-layers 24
    --hidden-size 1024
    --num-attention-heads 16
    --seq-length 512
    --max-position-embeddings 512
)
training=(
    --micro-batch-size 4
    --global-batch-size 32
    --train-iters 1000000
    --weight-decay 1e-2
    --clip-grad 1.0
    --fp16
    --lr 1.0e-4
    --min-lr 1.0e-5
    --lr-decay-style linear
    --lr-decay-iters 990000
    --lr-warmup-fraction .01
    --use-distributed-optimizer
)
data=(
    --data-path "${DATA_PATH}"
    --vocab-file "${VOCAB_FILE}"
    --split 949,50,1
)
output=(
    --log-interval 100
    --save-interval 10000
    --eval-interval 1000
    --eval-iters 10
    --save "${CHECKPOINT_PATH}"
    --load "${CHECKPOINT_PATH}"
    --tensorboard-dir "${TENSORBOARD_LOGS_PATH}"
)

exec "${python}" -m torch.distributed.run "${distributed[@]}" "${root}/pretrain_bert.py" \
    "${model[@]}" "${training[@]}" "${data[@]}" "${output[@]}" "${extra[@]}"
