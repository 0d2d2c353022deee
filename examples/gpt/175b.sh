#!/usr/bin/env bash
# GPT-3 with 175 billion parameters, 1024 GPUs, batch size ramped up from 16 to 1536.
# The length is in samples: a batch that grows has no fixed number of iterations for them.
# Try it without a GPU: examples/gpt/175b.sh --simulate-world 1024
set -euo pipefail

exec "$(dirname "$0")/recipe.sh" \
    --num-layers 96 --hidden-size 12288 --num-attention-heads 96 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 1 --global-batch-size 1536 --rampup-batch-size 16 16 5859375 \
    --tensor-model-parallel-size 8 --sequence-parallel --pipeline-model-parallel-size 16 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 \
    --lr-decay-samples 126953125 --lr-warmup-samples 183105 \
    --train-samples 146484375 \
    "$@"
