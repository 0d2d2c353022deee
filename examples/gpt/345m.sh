#!/usr/bin/env bash
# GPT with 345 million parameters (GPT-2 medium): one machine with 8 GPUs.
# Try it without a GPU: examples/gpt/345m.sh --simulate-world 8
set -euo pipefail

exec "$(dirname "$0")/launch.sh" \
    --num-layers 24 --hidden-size 1024 --num-attention-heads 16 \
    --seq-length 1024 --max-position-embeddings 1024 \
    --micro-batch-size 8 --global-batch-size 64 \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --bf16 --attention-dropout 0 --hidden-dropout 0 \
    --lr 1.5e-4 --min-lr 1.0e-5 --lr-decay-style cosine --lr-warmup-fraction 0.01 \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.006 \
    --train-iters 500000 --eval-iters 10 --log-interval 10 --log-throughput \
    "$@"
