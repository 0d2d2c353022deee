#!/usr/bin/env bash
# GPT with 7.5 billion parameters, 128 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/7.5b.sh --simulate-world 128
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 36 --hidden-size 4096 --num-attention-heads 32 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 16 --global-batch-size 512 \
    --tensor-model-parallel-size 4 --sequence-parallel \
    --recompute-granularity selective \
    --lr 1.2e-4 --min-lr 1.2e-5 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
