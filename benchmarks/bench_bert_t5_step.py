"""One training step (forward, backward, AdamW) of BERT and T5 against transformers.

    python benchmarks/bench_bert_t5_step.py [--model t5] [--dropout 0.1] [--dtype float32]

BERT is the model of the paper (post-norm, exact GELU) with the sizes of BERT-base but for its depth
and batch, T5 the 1.0 of T5-small; same weights' sizes, same padded rows, same optimizer
(torch.optim.AdamW, fused), steps of both in turn in one process. As in pretraining 15% of the
tokens of BERT are masked: megacore computes the logits of those only, transformers of all.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from megacore.checkpoint.convert.hf.families import FAMILIES
from megacore.models.initialization import init_weights
from megacore.models.select import MODELS

VOCAB = 30522
Step = Callable[[], float]


def hf_config(options: argparse.Namespace) -> Any:
    """Sizes and dropout."""
    if options.model == "bert":
        return transformers.BertConfig(
            vocab_size=VOCAB,
            num_hidden_layers=options.layers,
            hidden_dropout_prob=options.dropout,
            attention_probs_dropout_prob=options.dropout,
        )
    return transformers.T5Config(
        vocab_size=VOCAB,
        num_layers=options.layers,
        num_decoder_layers=options.layers,
        dropout_rate=options.dropout,
        decoder_start_token_id=0,
    )


def batch(options: argparse.Namespace) -> dict[str, Tensor]:
    """Rows of which the last tenth of some is padding."""
    size, length = options.batch_size, options.length
    lengths = torch.full((size,), length)
    lengths[::2] -= length // 10
    visible = torch.arange(length) < lengths[:, None]
    tokens = torch.randint(0, VOCAB, (size, length))
    masked = (torch.rand(size, length) < 0.15) & visible
    decoded = torch.randint(0, VOCAB, (size, options.length // 4))
    return {
        "tokens": tokens,
        "lengths": lengths,
        "visible": visible,
        "types": (torch.arange(length) >= length // 2).long().expand(size, -1).contiguous(),
        "masked": masked.flatten().nonzero().flatten(),
        "labels": torch.where(masked, tokens, -100),
        "order": torch.randint(0, 2, (size,)),
        "decoded": decoded,
    }


def stepper(model: nn.Module, loss_of: Callable[[], Tensor]) -> Step:
    """A whole step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def our_step(options: argparse.Namespace, data: dict[str, Tensor], dtype: torch.dtype) -> Step:
    values = hf_config(options).to_dict()
    config, _ = FAMILIES[options.model].read(values, "config.json")
    model = MODELS[options.model](config, padded_vocab_size=VOCAB, dtype=dtype)
    init_weights(model, config, seed=1)
    model.train()
    labels = data["labels"].flatten()[data["masked"]]

    def bert() -> Tensor:
        found = model(
            data["tokens"],
            data["lengths"],
            types=data["types"],
            chosen=data["masked"],
            labels=labels,
        )
        return found.tokens.mean() + F.cross_entropy(found.order.float(), data["order"])

    def t5() -> Tensor:
        losses: Tensor = model(
            data["tokens"], data["decoded"], data["lengths"], labels=data["decoded"]
        )
        return losses.mean()

    return stepper(model, bert if options.model == "bert" else t5)


def their_step(options: argparse.Namespace, data: dict[str, Tensor], dtype: torch.dtype) -> Step:
    config = hf_config(options)
    kind = "BertForPreTraining" if options.model == "bert" else "T5ForConditionalGeneration"
    model = getattr(transformers, kind)(config).to(dtype)
    model.train()
    mask = data["visible"].long()

    def bert() -> Tensor:
        loss: Tensor = model(
            data["tokens"],
            attention_mask=mask,
            token_type_ids=data["types"],
            labels=data["labels"],
            next_sentence_label=data["order"],
        ).loss
        return loss

    def t5() -> Tensor:
        loss: Tensor = model(
            data["tokens"],
            attention_mask=mask,
            decoder_input_ids=data["decoded"],
            labels=data["decoded"],
            use_cache=False,
        ).loss
        return loss

    return stepper(model, bert if options.model == "bert" else t5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=("bert", "t5"), default="bert")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    dtype, data = getattr(torch, options.dtype), batch(options)
    steps = {
        "megacore": our_step(options, data, dtype),
        "transformers": their_step(options, data, dtype),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(options.repeats):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - started)
    # Of each turn: other work on the machine slows both sides of it.
    ratios = [b / a for a, b in zip(times["megacore"], times["transformers"], strict=True)]
    print(
        f"{options.model}, {options.layers} layers, {options.batch_size} x {options.length}, "
        f"{options.dtype}, dropout {options.dropout}, {options.threads} threads"
    )
    for name, values in times.items():
        print(f"{name:14} {statistics.median(values):7.3f} s")
    print(f"transformers takes {statistics.median(ratios):.2f} x the time of megacore")


if __name__ == "__main__":
    main()
