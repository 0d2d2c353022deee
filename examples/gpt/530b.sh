#!/usr/bin/env bash
# GPT with 529.6 billion parameters, 2520 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/530b.sh --simulate-world 2520
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 105 --hidden-size 20480 --num-attention-heads 128 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 1 --global-batch-size 2520 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 35 --num-layers-per-virtual-pipeline-stage 1 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
