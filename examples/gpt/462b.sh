#!/usr/bin/env bash
# GPT with 462 billion parameters, 6144 GPUs: sequences of 4096 tokens, a vocabulary of 131072.
# Try it without a GPU: examples/gpt/462b.sh --simulate-world 6144
set -euo pipefail

export DATA_ARGS="${DATA_ARGS:---mock-data --tokenizer-type NullTokenizer --vocab-size 131071}"
exec "$(dirname "$0")/recipe.sh" \
    --num-layers 112 --hidden-size 18432 --num-attention-heads 128 \
    --seq-length 4096 --max-position-embeddings 4096 --untie-embeddings-and-output-weights \
    --micro-batch-size 1 --global-batch-size 6144 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 16 --num-layers-per-virtual-pipeline-stage 1 \
    --recompute-granularity selective \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-warmup-fraction 0.01 \
    --train-iters 500000 \
    "$@"
