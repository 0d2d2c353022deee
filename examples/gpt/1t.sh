#!/usr/bin/env bash
# GPT with 1 trillion parameters, 3072 GPUs.
# Shape, number of GPUs and batch: Narayanan et al., arXiv 2104.04473, table 1.
# Try it without a GPU: examples/gpt/1t.sh --simulate-world 3072
set -euo pipefail

exec "$(dirname "$0")/launch.sh" \
    --num-layers 128 --hidden-size 25600 --num-attention-heads 160 \
    --seq-length 2048 --max-position-embeddings 2048 \
    --micro-batch-size 1 --global-batch-size 3072 \
    --tensor-model-parallel-size 8 --sequence-parallel \
    --pipeline-model-parallel-size 64 --num-layers-per-virtual-pipeline-stage 1 \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --recompute-granularity selective \
    --bf16 --attention-dropout 0 --hidden-dropout 0 \
    --lr 6.0e-5 --min-lr 6.0e-6 --lr-decay-style cosine --lr-warmup-fraction 0.01 \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.006 \
    --train-iters 500000 --eval-iters 10 --log-interval 10 --log-throughput \
    "$@"
