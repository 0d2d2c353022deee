#!/usr/bin/env bash
# GPT with 39.1 billion parameters, 512 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/39b.sh --simulate-world 512
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 48 --hidden-size 8192 --num-attention-heads 64 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 4 --global-batch-size 1536 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 2 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
