#!/usr/bin/env bash
# GPT with 345 million parameters (GPT-2 medium): one machine with 8 GPUs.
# Try it without a GPU: examples/gpt/345m.sh --simulate-world 8
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 \
    --seq-length 1024 --max-position-embeddings 1024 \
    --micro-batch-size 8 --global-batch-size 64 \
    --lr 1.5e-4 --min-lr 1.0e-5 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
