#!/usr/bin/env bash
# GPT with 76.1 billion parameters, 1024 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/76b.sh --simulate-world 1024
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 60 --hidden-size 10240 --num-attention-heads 80 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 2 --global-batch-size 1792 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 4 --num-layers-per-virtual-pipeline-stage 5 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
