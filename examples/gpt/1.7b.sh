#!/usr/bin/env bash
# GPT with 1.7 billion parameters, 32 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/1.7b.sh --simulate-world 32
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 24 --hidden-size 2304 --num-attention-heads 24 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 16 --global-batch-size 512 \
    --recompute-granularity selective \
    --lr 2.0e-4 --min-lr 2.0e-5 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
