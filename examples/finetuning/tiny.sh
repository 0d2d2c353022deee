#!/usr/bin/env bash
# Finetuning from end to end on a CPU, in a minute: a tiny model learns some answers (all weights),
# then other answers (adapters), is merged, exported for PEFT, and asked.
#   examples/finetuning/tiny.sh [FOLDER]
set -euo pipefail
FOLDER=${1:-tiny-finetuning}
PYTHON=${PYTHON:-python}
mkdir -p "$FOLDER"

# A tokenizer with a chat template, as save_pretrained leaves one, and two files of conversations.
"$PYTHON" - "$FOLDER" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

folder = Path(sys.argv[1])
first = {"Tea or coffee?": "Tea, please.", "Coffee or water?": "Coffee, please."}
second = {"Tea or coffee?": "Coffee, please.", "Coffee or water?": "Coffee, please."}
tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
tokenizer.train_from_iterator([*first, *first.values(), *second, *second.values()], trainer)
tokenizer.add_special_tokens([AddedToken(t) for t in ("<s>", "<|im_start|>", "<|im_end|>")])
(folder / "tokenizer").mkdir(exist_ok=True)
tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
template = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
settings = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": template}
(folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(settings))
for name, answers in (("first", first), ("second", second)):
    with (folder / f"{name}.jsonl").open("w") as file:
        for question, answer in answers.items():
            roles = [("user", question), ("assistant", answer)]
            messages = [{"role": role, "content": text} for role, text in roles]
            file.write(4 * (json.dumps({"messages": messages}) + "\n"))
PYTHON

MODEL="--num-layers 2 --hidden-size 64 --num-attention-heads 4 --ffn-hidden-size 128
  --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
  --untie-embeddings-and-output-weights --max-position-embeddings 64 --seq-length 64"
RUN="--sft --tokenizer-type HuggingFaceTokenizer --tokenizer-model $FOLDER/tokenizer
  --split 1,0,0 --micro-batch-size 2 --global-batch-size 4 --eval-iters 0 --no-live-view
  --attention-dropout 0 --hidden-dropout 0 --log-interval 20 --peak-tflops 1 --save-interval 1000"

# All weights.
$PYTHON -m megacore train $MODEL $RUN --data-path "$FOLDER/first.jsonl" \
  --train-iters 60 --lr 1e-2 --min-lr 1e-4 --save "$FOLDER/model"
# Adapters alone. The same command goes on where it was stopped: --load has then something to load.
$PYTHON -m megacore train $MODEL $RUN --data-path "$FOLDER/second.jsonl" \
  --lora-rank 8 --pretrained-checkpoint "$FOLDER/model" --load "$FOLDER/adapters" \
  --train-iters 80 --lr 2e-2 --min-lr 1e-4 --save "$FOLDER/adapters"
# A whole model of both, and adapters for PEFT.
rm -rf "$FOLDER/merged" "$FOLDER/peft"
$PYTHON -m megacore lora merge "$FOLDER/model" "$FOLDER/adapters" "$FOLDER/merged"
$PYTHON -m megacore lora export "$FOLDER/adapters" "$FOLDER/peft"

PROMPT=$'<|im_start|>user\nTea or coffee?<|im_end|>\n<|im_start|>assistant\n'
for one in model adapters merged; do
  echo "--- $one"
  $PYTHON -m megacore generate --load "$FOLDER/$one" --prompt "$PROMPT" --greedy \
    --tokens-to-generate 20 --tokenizer-model "$FOLDER/tokenizer"
done
