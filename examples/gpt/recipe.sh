#!/usr/bin/env bash
# What the runs of all sizes have in common; flags that follow win over these.
set -euo pipefail

exec "$(dirname "$0")/launch.sh" \
    --use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather \
    --bf16 --attention-dropout 0 --hidden-dropout 0 \
    --lr-decay-style cosine \
    --weight-decay 0.1 --adam-beta2 0.95 --clip-grad 1.0 --init-method-std 0.006 \
    --eval-iters 10 --log-interval 10 --log-throughput \
    "$@"
