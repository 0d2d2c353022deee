#!/usr/bin/env bash
# GPT with 462 billion parameters, 6144 GPUs: sequences of 4096 tokens, a vocabulary of 131072.
# Try it without a GPU: examples/gpt/462b.sh --simulate-world 6144
set -euo pipefail

export DATA_ARGS="${DATA_ARGS:---mock-data --tokenizer-type NullTokenizer --vocab-size 131071}"
exec "$(dirname "$0")/launch.sh" \
    --num-layers 112 --hidden-size 18432 --num-attention-heads 128 \
    --seq-length 4096 --max-position-embeddings 4096 --untie-embeddings-and-output-weights \
    --micro-batch-size 1 --global-batch-size 6144 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 16 --num-layers-per-virtual-pipeline-stage 1 \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --recompute-granularity selective \
    --bf16 --attention-dropout 0 --hidden-dropout 0 \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-decay-style cosine --lr-warmup-fraction 0.01 \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.006 \
    --train-iters 500000 --eval-iters 10 --log-interval 10 --log-throughput \
    "$@"
