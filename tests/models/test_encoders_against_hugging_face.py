"""BERT and T5: same weights, same logits and gradients as transformers, padded rows included."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import transformers

from megacore.testing.encoder_cases import (
    CASES,
    LENGTHS,
    VOCAB,
    batch,
    hf_model,
    ours_from,
    their_gradients,
)
from megacore.testing.tolerance import expect_close, rms_error

transformers.logging.set_verbosity_error()
BERTS = [name for name in CASES if "bert" in name]
T5S = [name for name in CASES if "t5" in name]


def bert_losses(model, data):
    """Sum of the masked and of the order loss; the logits of real tokens and of the order."""
    out = model(data["tokens"], attention_mask=data["visible"].long(), token_type_ids=data["types"])
    return _bert_loss(out.prediction_logits, out.seq_relationship_logits, data)


def our_bert_losses(model, data):
    out = model(data["tokens"], LENGTHS, types=data["types"])
    return _bert_loss(out.tokens, out.order, data)


def _bert_loss(tokens, order, data):
    tokens, labels = tokens[data["visible"]], data["labels"][data["visible"]]
    loss = F.cross_entropy(tokens, labels) + F.cross_entropy(order, data["order"])
    return loss, torch.cat([tokens.detach().flatten(), order.detach().flatten()])


def t5_losses(model, data):
    logits = model(
        data["tokens"],
        attention_mask=data["visible"].long(),
        decoder_input_ids=data["decoded"],
        use_cache=False,
    ).logits
    return _t5_loss(logits, data)


def our_t5_losses(model, data):
    return _t5_loss(model(data["tokens"], data["decoded"], LENGTHS), data)


def _t5_loss(logits, data):
    loss = F.cross_entropy(logits.flatten(0, 1), data["decoded_labels"].flatten())
    return loss, logits.detach().clone()


@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients_in_float64(name):
    model, data = hf_model(name).double(), batch()
    ours, _ = ours_from(model, torch.float64)
    theirs, mine = (bert_losses, our_bert_losses) if name in BERTS else (t5_losses, our_t5_losses)
    loss, logits = theirs(model, data)
    our_loss, our_logits = mine(ours, data)
    expect_close(our_logits, logits, bound=1e-9, name="logits")
    loss.backward()
    our_loss.backward()
    expected = their_gradients(model)
    assert set(expected) == {key for key, _ in ours.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert parameter.grad is not None, key
        scale = max(expected[key].abs().max().item(), 1e-3)
        expect_close(parameter.grad, expected[key], bound=1e-9 * scale, name=key)


@pytest.mark.parametrize("name", CASES)
def test_float32_is_as_exact_as_transformers(name):
    """Error of the logits against float64 at most twice that of transformers (root mean square)."""
    model, data = hf_model(name), batch()
    ours, _ = ours_from(model, torch.float32)
    theirs, mine = (bert_losses, our_bert_losses) if name in BERTS else (t5_losses, our_t5_losses)
    exact = theirs(copy.deepcopy(model).double(), data)[1]
    assert rms_error(mine(ours, data)[1], exact) <= 2 * rms_error(theirs(model, data)[1], exact)


def test_chosen_tokens_have_the_logits_and_losses_that_all_have():
    ours, _ = ours_from(hf_model("bert").double(), torch.float64)
    data = batch()
    chosen = torch.tensor([3, 0, 17 + 4, 2 * 17 + 11])
    whole = ours(data["tokens"], LENGTHS, types=data["types"]).tokens.flatten(0, 1)[chosen]
    some = ours(data["tokens"], LENGTHS, types=data["types"], chosen=chosen).tokens
    expect_close(some, whole, bound=1e-12)
    labels = data["labels"].flatten()[chosen]
    losses = ours(data["tokens"], LENGTHS, types=data["types"], chosen=chosen, labels=labels).tokens
    expect_close(losses, F.cross_entropy(whole, labels, reduction="none"), bound=1e-12)


@pytest.mark.parametrize("name", ["bert", "t5-1.0"])
def test_padding_changes_nothing(name):
    """The tokens of a row do not depend on what stands behind them."""
    ours, _ = ours_from(hf_model(name).double(), torch.float64)
    data = batch()
    changed = torch.where(data["visible"], data["tokens"], (data["tokens"] + 1) % VOCAB)
    if name == "bert":
        before, after = (
            ours(tokens, LENGTHS, types=data["types"]).tokens[data["visible"]]
            for tokens in (data["tokens"], changed)
        )
    else:
        before, after = (
            ours(tokens, data["decoded"], LENGTHS) for tokens in (data["tokens"], changed)
        )
    assert torch.equal(before, after)
