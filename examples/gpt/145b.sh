#!/usr/bin/env bash
# GPT with 145.6 billion parameters, 1536 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/145b.sh --simulate-world 1536
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 80 --hidden-size 12288 --num-attention-heads 96 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 2 --global-batch-size 2304 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 8 --num-layers-per-virtual-pipeline-stage 5 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
