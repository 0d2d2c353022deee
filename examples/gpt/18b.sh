#!/usr/bin/env bash
# GPT with 18.4 billion parameters, 256 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/18b.sh --simulate-world 256
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 40 --hidden-size 6144 --num-attention-heads 48 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 8 --global-batch-size 1024 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
