"""Greedy generation from a small GPT against `transformers` generate with the same weights.

    python benchmarks/bench_generation.py [--batch-size 8]

Both use a key/value cache, and must produce the same tokens in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import transformers

from megacore.data.tokenizers.null import NullTokenizer
from megacore.inference.engine import Engine
from megacore.inference.sampling import SamplingParams
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.testing.hf_weights import from_gpt2

LAYERS, HIDDEN, HEADS, VOCAB, LENGTH = 6, 384, 6, 8192, 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--prompt-length", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    dtype = getattr(torch, options.dtype)

    sizes = {"vocab_size": VOCAB, "n_positions": LENGTH, "n_embd": HIDDEN}
    sizes |= {"n_layer": LAYERS, "n_head": HEADS, "initializer_range": 0.1}
    config = transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None)
    peer = transformers.GPT2LMHeadModel(config).eval()
    model = GPTModel(
        ModelConfig(
            num_layers=LAYERS,
            hidden_size=HIDDEN,
            num_attention_heads=HEADS,
            max_position_embeddings=LENGTH,
        ),
        padded_vocab_size=VOCAB,
        dtype=dtype,
    )
    model.load_state_dict(from_gpt2(dict(peer.named_parameters()), model.spec))
    peer = peer.to(dtype)
    prompts = torch.randint(0, VOCAB - 1, (options.batch_size, options.prompt_length))
    texts = [" ".join(map(str, row)) for row in prompts.tolist()]
    engine = Engine(model, NullTokenizer(VOCAB - 1), max_batch_size=options.batch_size)
    params = SamplingParams(tokens_to_generate=options.tokens, top_k=1, stop_at_eod=False)

    def ours() -> list[list[int]]:
        return [result.tokens for result in engine.generate(texts, params)]

    def theirs() -> list[list[int]]:
        out = peer.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=options.tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return out[:, options.prompt_length :].tolist()

    same = ours() == theirs()
    times: dict[str, list[float]] = {"megacore": [], "transformers": []}
    for _ in range(options.repeats):
        for name, run in (("megacore", ours), ("transformers", theirs)):
            started = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    count = options.batch_size * options.tokens
    print(f"{options.dtype}, batch {options.batch_size}, same tokens: {same}")
    for name, median in medians.items():
        print(f"{name:14} {count / median:8.1f} tokens/s")
    print(f"ratio {medians['transformers'] / medians['megacore']:.2f}")


if __name__ == "__main__":
    main()
