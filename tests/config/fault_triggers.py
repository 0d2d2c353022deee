"""Command lines that break each rule: what triggers every fault id of a training run."""

from __future__ import annotations

# Id -> (words to add to the small run, flags of it to leave out). A list means several ways.
SAMPLES = "--train-samples 1000"
ROPE = "--position-embedding-type rope"
FULL_RECOMPUTE = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"
CHATS = "--sft --tokenizer-type HuggingFaceTokenizer --tokenizer-model d"
T5 = "--model-family t5 --vocab-extra-ids 99 --decoder-seq-length 16"
TRIGGERS: dict[str, list[tuple[str, str]]] = {
    "MC0001": [("--num-layer 3", ""), ("--never-heard-of", ""), ("-q", "")],
    "MC0002": [("--seed", ""), ("--seed --bf16", ""), ("--profile-ranks", ""), ("--config", "")],
    "MC0003": [("--seed 1.5", ""), ("--lr fast", ""), ("--hidden-size 64k", ""), ("--lr nan", "")],
    "MC0004": [
        ("--optimizer lamb", ""),
        ("--timing-log-level 3", ""),
        ("--tokenizer-type gpt2", ""),
    ],
    "MC0005": [("--num-layers 0", ""), ("--adam-beta2 1.0", ""), ("--hidden-dropout -0.1", "")],
    "MC0006": [("--bf16=true", ""), ("--disable-bias-linear=false", "")],
    "MC0007": [("stray", ""), ("--seed 1 2", "")],
    "MC0008": [("--config /nonexistent/run.yaml", ""), ("--config run.ini", "")],
    "MC0009": [("--config unknown_key.yaml", ""), ("--config unknown_group.yaml", "")],
    "MC0010": [("--config twice.yaml", ""), ("--config dash_and_underscore.yaml", "")],
    "MC0011": [
        ("--num-experts 8", ""),
        ("--ckpt-format zarr", ""),
        ("--non-persistent-ckpt-type local", ""),
        ("--spec my.module spec", ""),
    ],
    "MC0012": [
        ("--batch-size 4", ""),
        ("--warmup 3", ""),
        ("--model-parallel-size 2", ""),
        ("--checkpoint-activations", ""),
    ],
    "MC0013": [("--unset hiden-size", "")],
    "MC0101": [
        ("", "--num-layers"),
        ("", "--hidden-size"),
        ("", "--num-attention-heads"),
        ("", "--max-position-embeddings"),
        ("", "--seq-length"),
        ("", "--micro-batch-size"),
        ("", "--lr"),
    ],
    "MC0102": [("--encoder-num-layers 3", "")],
    "MC0103": [("--num-attention-heads 5", "")],
    "MC0104": [("--group-query-attention --num-query-groups 3", "")],
    "MC0105": [
        ("--squared-relu --swiglu", ""),
        ("--geglu --swiglu", ""),
        ("--quick-gelu --openai-gelu", ""),
        ("--quick-gelu --squared-relu", ""),
    ],
    "MC0106": [
        ("--position-embedding-type rope --rotary-percent 0.45", ""),
        ("--use-rotary-position-embeddings --kv-channels 15", ""),
        ("--position-embedding-type rope --rotary-percent 0.05", ""),
    ],
    "MC0107": [("--no-position-embedding", "")],
    "MC0108": [("--use-rotary-position-embeddings --position-embedding-type none", "")],
    "MC0109": [
        (f"{ROPE} --use-rope-scaling --rope-scaling-type linear", ""),
        (f"{ROPE} --use-rope-scaling --rotary-seq-len-interpolation-factor 2", ""),
    ],
    "MC0110": [("--use-rope-scaling", "")],
    "MC0111": [
        (f"{ROPE} --rope-scaling-type yarn", ""),
        (
            f"{ROPE} --rope-scaling-type longrope --rope-scaling-original-max-position-embeddings "
            "16 --rope-scaling-short-factors 1 --rope-scaling-long-factors 2",
            "",
        ),
    ],
    "MC0112": [
        (f"{ROPE} --use-rope-scaling --rope-scaling-low-freq-factor 4", ""),
        (
            f"{ROPE} --rope-scaling-type yarn --rope-scaling-original-max-position-embeddings 16 "
            "--rope-scaling-beta-fast 0.5",
            "",
        ),
    ],
    "MC0113": [
        ("--window-size 128", ""),
        ("--window-size=-1,0", ""),
        ("--window-size 128,1", ""),
        ("--window-size 128,0 --window-attn-skip-freq 0", ""),
        ("--window-size 128,0 --window-attn-skip-freq [1,0,1,0,1]", ""),
        ("--window-size 128,0 --window-attn-skip-freq [1]*2", ""),
    ],
    "MC0114": [("--window-attn-skip-freq 2", ""), (f"{ROPE} --rotary-base-local 10", "")],
    "MC0115": [("--use-parallel-residual --apply-residual-connection-post-layernorm", "")],
    "MC0151": [
        ("--recompute-granularity full", ""),
        ("--recompute-granularity full --recompute-method block", ""),
        ("--recompute-granularity full --recompute-num-layers 1", ""),
    ],
    "MC0152": [
        ("--recompute-activations --recompute-num-layers 1", ""),
        ("--recompute-granularity selective --recompute-method uniform", ""),
    ],
    "MC0153": [("--recompute-activations --recompute-granularity full", "")],
    "MC0154": [("--recompute-method uniform", ""), ("--recompute-num-layers 2", "")],
    "MC0201": [("--global-batch-size 5", "")],
    "MC0202": [("--global-batch-size 1", "")],
    "MC0203": [
        (f"--rampup-batch-size 2 2 {SAMPLES} --global-batch-size 8", "--train-iters"),
        (f"--rampup-batch-size 0 2 100 {SAMPLES} --global-batch-size 8", "--train-iters"),
    ],
    "MC0204": [("--rampup-batch-size 2 2 100 --global-batch-size 8", "")],
    "MC0205": [
        (f"--rampup-batch-size 2 4 100 {SAMPLES} --global-batch-size 8", "--train-iters"),
        (f"--rampup-batch-size 8 2 100 {SAMPLES} --global-batch-size 8", "--train-iters"),
    ],
    "MC0206": [
        (f"--rampup-batch-size 3 1 100 {SAMPLES} --global-batch-size 8", "--train-iters"),
        (
            f"--rampup-batch-size 1 1 100 {SAMPLES} --global-batch-size 8"
            " --decrease-batch-size-if-needed",
            "--train-iters",
        ),
    ],
    "MC0211": [(SAMPLES, ""), ("", "--train-iters")],
    "MC0212": [("--train-samples 7 --global-batch-size 8", "--train-iters")],
    "MC0301": [("--min-lr 0.1", ""), ("--decoupled-lr 1e-4 --decoupled-min-lr 1e-3", "")],
    "MC0302": [("--lr-decay-samples 100", ""), ("--lr-warmup-samples 2", "")],
    "MC0303": [
        (f"{SAMPLES} --lr-decay-iters 100", "--train-iters"),
        (f"{SAMPLES} --lr-warmup-iters 2", "--train-iters"),
        (f"{SAMPLES} --lr-wsd-decay-iters 2", "--train-iters"),
    ],
    "MC0304": [("--lr-warmup-fraction 0.1 --lr-warmup-iters 2", "")],
    "MC0305": [("--lr-warmup-iters 10", ""), ("--lr-decay-iters 4 --lr-warmup-iters 5", "")],
    "MC0306": [("--lr-warmup-init 0.5", "")],
    "MC0307": [
        ("--lr-decay-style WSD", ""),
        ("--lr-decay-style WSD --lr-wsd-decay-iters 11", ""),
    ],
    "MC0308": [("--override-opt_param-scheduler --use-checkpoint-opt_param-scheduler", "")],
    "MC0309": [("--decoupled-min-lr 1e-5", "")],
    "MC0401": [("--start-weight-decay 0.05", "")],
    "MC0402": [("--weight-decay-incr-style cosine --start-weight-decay 0.1", "")],
    "MC0403": [
        (
            "--weight-decay-incr-style linear --start-weight-decay 0.1 --end-weight-decay 0.01",
            "",
        )
    ],
    "MC0501": [("--fp16 --bf16", "")],
    "MC0502": [("--bf16 --fp16-lm-cross-entropy", "")],
    "MC0503": [("--fp32-residual-connection", "")],
    "MC0504": [("--fp16 --initial-loss-scale 2 --min-loss-scale 4", "")],
    "MC0601": [("", "--mock-data"), ("--data-path a", ""), ("--train-data-path a", "")],
    "MC0602": [("--encoder-seq-length 32", "")],
    "MC0603": [("--seq-length 65", "")],
    "MC0604": [
        ("--data-path a --split 0,0,0", "--mock-data"),
        ("--data-path a --split 1,2,3,4", "--mock-data"),
        ("--data-path a --split all", "--mock-data"),
        ("--data-path a --split 90,-5,5", "--mock-data"),
        ("--data-path a --split 1..2", "--mock-data"),
    ],
    "MC0605": [("--train-data-path a --split 9,1", "--mock-data")],
    "MC0606": [("--data-path 0.3 a b c", "--mock-data")],
    "MC0607": [("--valid-data-path a", "--mock-data")],
    "MC0611": [
        ("--tokenizer-type GPT2BPETokenizer --vocab-file v.json", ""),
        ("", "--tokenizer-type"),
        ("--tokenizer-type Llama2Tokenizer", ""),
        ("", "--vocab-size"),
    ],
    "MC0612": [("--tiktoken-special-tokens <unk> <s>", "")],
    "MC0701": [("--save out", "")],
    "MC0702": [("--use-checkpoint-args", ""), ("--ckpt-step 3", ""), ("--finetune", "")],
    "MC0750": [("--load d --ckpt-convert-format torch", ""), ("--ckpt-convert-save d", "")],
    "MC0751": [
        ("--pretrained-checkpoint d --lora-rank 4 --ckpt-format torch", ""),
        ("--save d --save-interval 1 --async-save --ckpt-format torch", ""),
    ],
    "MC0730": [("--save d --save-interval 4 --save-retain-interval 6", "")],
    "MC0731": [("--save d --save-interval 1 --non-persistent-global-ckpt-dir d", "")],
    "MC0801": [("--wandb-project p", "")],
    "MC0802": [("--profile --profile-step-start 5 --profile-step-end 5", "")],
    "MC1101": [
        ("--lora-alpha 16", ""),
        ("--lora-dropout 0.1", ""),
        ("--lora-targets linear_qkv,linear_fc1", ""),
    ],
    "MC1102": [
        ("--lora-rank 4 --load d --lora-targets q_proj", ""),
        ("--lora-rank 4 --load d --lora-targets linear_qkv,output_layer", ""),
    ],
    "MC1103": [("--lora-rank 4", "")],
    "MC1230": [("--cross-entropy-fusion-impl linear --final-logit-softcapping 30", "")],
    "MC1231": [("--fp8-format hybrid --bf16 --ckpt-format torch", "")],
    "MC1320": [
        ("--bert-no-binary-head", ""),
        ("--decoder-num-layers 2", ""),
        ("--position-embedding-type relative", ""),
        ("--model-family bert --window-size 4,0", ""),
        (f"{T5} --qk-layernorm", ""),
        ("--mask-prob 0.2", ""),
        ("--pipeline-model-parallel-split-rank 1", ""),
    ],
    "MC1321": [
        ("--model-family bert --ckpt-format torch", ""),
        ("--model-family bert --calculate-per-token-loss", ""),
    ],
    "MC1301": [("--model-family bert --reset-position-ids", "")],
    "MC1302": [("--model-family bert --decoder-seq-length 8", "")],
    "MC1303": [("--model-family bert --seq-length 4", "")],
    "MC1304": [(f"{T5} --vocab-extra-ids 0", "")],
    "MC1305": [(f"{T5} --mask-prob 0.9", "")],
    "MC1306": [(f"{T5} --decoder-seq-length 512", "")],
    "MC1111": [("--chat-template x.jinja", ""), ("--sft-overlong drop", "")],
    "MC1112": [
        ("--sft --data-path chat.jsonl", "--mock-data"),
        (
            "--sft --data-path chat.jsonl --vocab-file v --merge-file m",
            "--mock-data --tokenizer-type",
        ),
    ],
    "MC1113": [
        (f"{CHATS} --mock-data", "--mock-data --data-path"),
        (f"{CHATS} --data-path chat.jsonl --reset-attention-mask", "--mock-data"),
    ],
    "MC1114": [(f"{CHATS} --data-path 0.5 a.jsonl 0.5 b.jsonl", "--mock-data")],
}
ENVIRONMENTS = {
    "MC0015": [
        {"WORLD_SIZE": "many"},
        {"WORLD_SIZE": "2", "RANK": "2"},
        {"WORLD_SIZE": "0"},
        {"RANK": "1"},
        {"WORLD_SIZE": "1", "LOCAL_RANK": "-1"},
    ],
}
PIPELINE = "--num-layers 8 --pipeline-model-parallel-size 4 --global-batch-size 16"
SPLIT = f"{T5} --pipeline-model-parallel-size 2 --pipeline-model-parallel-split-rank"
# Command line and number of processes.
WORLDS: dict[str, list[tuple[str, int]]] = {
    "MC0116": [
        ("--context-parallel-size 2 --window-size 16,0", 2),
        ("--context-parallel-size 2 --attn-logit-softcapping 50", 2),
        ("--context-parallel-size 2 --softmax-scale 0.1", 2),
    ],
    "MC0117": [
        (
            f"--context-parallel-size 2 --cp-comm-type a2a {ROPE} --rope-scaling-type longrope "
            "--rope-scaling-original-max-position-embeddings 16 --kv-channels 2 "
            "--rope-scaling-short-factors 1 --rope-scaling-long-factors 2",
            2,
        ),
    ],
    "MC1322": [
        (
            "--model-family t5 --vocab-extra-ids 99 --decoder-seq-length 15 --sequence-parallel "
            "--tensor-model-parallel-size 2",
            2,
        ),
    ],
    "MC1323": [
        (f"{SPLIT} 2", 2),
        (f"{SPLIT} 1 --decoder-num-layers 3 --pipeline-model-parallel-size 3", 3),
        (f"{SPLIT} 1 --pipeline-schedule zb-v", 2),
    ],
    "MC0901": [
        ("--tensor-model-parallel-size 2", 1),
        ("--tensor-model-parallel-size 4", 6),
        ("--tensor-model-parallel-size 2 --context-parallel-size 4", 12),
        ("--expert-model-parallel-size 4", 6),
    ],
    "MC0902": [("--order tp-pp-dp --use-tp-pp-dp-mapping", 2)],
    "MC0903": [
        ("--order tp-pp", 2),
        ("--order tp-cp-cp-dp-pp", 1),
        ("--use-tp-pp-dp-mapping --context-parallel-size 2", 2),
    ],
    "MC0904": [("--simulate-world 4", 2)],
    "MC0911": [("--sequence-parallel", 1), ("--sequence-parallel", 2)],
    "MC0912": [("--tp-comm-overlap", 2)],
    "MC0913": [
        ("--distribute-saved-activations --tensor-model-parallel-size 2", 2),
        (f"--distribute-saved-activations {FULL_RECOMPUTE}", 2),
        (
            "--distribute-saved-activations --tensor-model-parallel-size 2 --sequence-parallel "
            f"{FULL_RECOMPUTE}",
            2,
        ),
    ],
    "MC0914": [
        ("--tensor-model-parallel-size 8", 8),
        ("--tensor-model-parallel-size 4 --ffn-hidden-size 130", 4),
        ("--tensor-model-parallel-size 4 --group-query-attention --num-query-groups 2", 4),
    ],
    "MC0915": [
        ("--context-parallel-size 3", 3),
        ("--tensor-model-parallel-size 4 --sequence-parallel --seq-length 62", 4),
        (
            "--tensor-model-parallel-size 4 --context-parallel-size 2 --sequence-parallel "
            "--seq-length 60",
            8,
        ),
    ],
    "MC0916": [
        ("--tensor-model-parallel-size 2 --context-parallel-size 4 --cp-comm-type a2a", 8),
        (
            "--context-parallel-size 4 --cp-comm-type a2a --group-query-attention "
            "--num-query-groups 2",
            4,
        ),
    ],
    "MC0921": [
        ("--pipeline-schedule zb-v", 2),
        ("--num-layers-per-virtual-pipeline-stage 1", 1),
        ("--standalone-embedding-stage", 2),
    ],
    "MC0922": [(f"{PIPELINE} --pipeline-schedule-file s.csv --pipeline-schedule gpipe", 4)],
    "MC0923": [
        (f"{PIPELINE} --pipeline-schedule interleaved", 4),
        (f"{PIPELINE} --pipeline-schedule zb-v --num-layers-per-virtual-pipeline-stage 1", 4),
    ],
    "MC0924": [
        (f"{PIPELINE} --pipeline-schedule zb-v --decoder-first-pipeline-num-layers 2", 4),
        (f"{PIPELINE} --standalone-embedding-stage --decoder-first-pipeline-num-layers 2", 4),
    ],
    "MC0925": [
        (f"{PIPELINE} --num-layers 6", 4),
        (f"{PIPELINE} --num-layers 4 --pipeline-schedule zb-v", 4),
        (f"{PIPELINE} --num-layers-per-virtual-pipeline-stage 3", 4),
        (f"{PIPELINE} --decoder-last-pipeline-num-layers 1", 4),
        (f"{PIPELINE} --decoder-last-pipeline-num-layers 9", 4),
        (f"{PIPELINE} --standalone-embedding-stage", 4),
    ],
    "MC0926": [
        (f"{PIPELINE} --pipeline-schedule dualpipe --global-batch-size 2", 4),
        (
            f"{PIPELINE} --pipeline-schedule dualpipe --num-layers 6 "
            "--pipeline-model-parallel-size 3",
            3,
        ),
    ],
    "MC0931": [
        ("--overlap-param-gather", 2),
        ("--overlap-param-gather --use-distributed-optimizer", 2),
    ],
    "MC0932": [
        ("--num-distributed-optimizer-instances 2", 2),
        ("--num-distributed-optimizer-instances 3 --use-distributed-optimizer", 4),
    ],
    "MC0933": [
        (f"{PIPELINE} --pipeline-schedule zb-h1 --data-parallel-sharding-strategy optim_grads", 4),
        (
            f"{PIPELINE} --pipeline-schedule zb-h2 "
            "--data-parallel-sharding-strategy optim_grads_params",
            4,
        ),
    ],
    "MC1104": [
        (
            f"{PIPELINE} --decoder-last-pipeline-num-layers 2 --standalone-embedding-stage "
            "--lora-rank 4 --load d",
            4,
        ),
    ],
}
