"""Cross entropy against float64, whole and cut into parts of the vocabulary, and its fusion with
the output projection."""

from __future__ import annotations

import itertools

import pytest
import torch

from megacore.ops.cross_entropy import (
    PLAIN,
    LogitSums,
    LossTerms,
    cross_entropy,
    cross_entropy_reference,
    logit_sums,
)
from megacore.ops.linear_cross_entropy import (
    CHUNKS,
    linear_cross_entropy,
    linear_cross_entropy_reference,
)

SHAPES = [(1, 1), (3, 7), (5, 64), (17, 1003), (2, 50257), (130, 33)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TERMS = [
    PLAIN,
    LossTerms(label_smoothing=0.1),
    LossTerms(z_loss=0.01),
    LossTerms(label_smoothing=0.2, z_loss=1e-3, ignore_index=-100),
]


def inputs(shape, dtype, terms, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape, generator=generator) * 4).to(dtype)
    labels = torch.randint(shape[1], shape[:1], generator=generator)
    if terms.ignore_index is not None:
        labels[::3] = terms.ignore_index
    grad = torch.rand(shape[0], generator=generator)
    return logits, labels, grad


def run(function, logits, labels, grad, **kwargs):
    leaf = logits.detach().clone().requires_grad_()
    # Behind a copy, because backward overwrites what it is given.
    losses = function(leaf.clone(), labels, **kwargs)
    losses.backward(grad)
    return losses.detach(), leaf.grad


@pytest.mark.parametrize(
    ("dtype", "terms"), list(itertools.product(DTYPES, TERMS)), ids=lambda x: str(x)[:40]
)
def test_at_most_twice_the_error_of_pytorch(dtype, terms):
    for shape in SHAPES:
        logits, labels, grad = inputs(shape, dtype, terms)
        exact = run(cross_entropy_reference, logits.double(), labels, grad.double(), terms=terms)
        theirs = run(cross_entropy_reference, logits, labels, grad, terms=terms)
        ours = run(cross_entropy, logits, labels, grad, terms=terms)
        assert ours[0].dtype == torch.float32
        assert ours[1].dtype == dtype
        for name, want, peer, got in zip(("loss", "dlogits"), exact, theirs, ours, strict=True):
            # The gradient is a difference of terms as large as that of the loss.
            least = 1.0 if name == "loss" else grad.max().item()
            scale = want.abs().max().clamp(min=least)
            eps = torch.finfo(got.dtype).eps
            bound = 2 * (peer.double() - want).abs().max() + 2 * eps * scale
            assert (got.double() - want).abs().max() <= bound, (name, shape)


def merged(parts):
    """Sums over the whole vocabulary from those over its parts."""
    largest = torch.stack([part.largest for part in parts]).amax(0)
    total = sum(part.total * (part.largest - largest).exp() for part in parts)
    return LogitSums(
        largest, total, sum(part.chosen for part in parts), sum(part.sum for part in parts)
    )


@pytest.mark.parametrize("terms", TERMS, ids=lambda x: str(x)[:40])
def test_parts_of_the_vocabulary_put_together(terms):
    logits, labels, grad = inputs((19, 301), torch.float32, terms)
    losses, gradient = run(cross_entropy, logits, labels, grad, terms=terms)
    starts = [0, 100, 101, 300]
    pieces = [
        logits[:, a:b].contiguous() for a, b in itertools.pairwise([*starts, logits.shape[1]])
    ]
    parts = [
        logit_sums(piece, labels, first_column=start, with_sum=True)
        for start, piece in zip(starts, pieces, strict=True)
    ]
    sums = merged(parts)
    torch.testing.assert_close(terms.losses(sums, labels, 301), losses, rtol=1e-6, atol=1e-6)
    for start, piece in zip(starts, pieces, strict=True):
        terms.write_gradient(piece, labels, sums, grad, vocab_size=301, first_column=start)
    torch.testing.assert_close(torch.cat(pieces, dim=1), gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("terms", TERMS, ids=lambda x: str(x)[:40])
def test_wide_dtypes_take_the_reference(terms):
    logits, labels, grad = inputs((9, 41), torch.float64, terms)
    want = run(cross_entropy_reference, logits, labels, grad.double(), terms=terms)
    got = run(cross_entropy, logits, labels, grad.double(), terms=terms, compute=torch.float64)
    torch.testing.assert_close(got, want)
    assert got[0].dtype == torch.float64


@pytest.mark.parametrize("terms", TERMS, ids=lambda x: str(x)[:40])
def test_references_have_the_right_derivatives(terms):
    logits, labels, _ = inputs((5, 7), torch.float64, terms)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: cross_entropy_reference(x, labels, terms=terms), (logits,)
    )


def test_far_and_infinite_logits():
    infinite = float("inf")
    logits = torch.tensor([[3e4, -3e4, 0.0], [-infinite, 1.0, -infinite], [0.0, float("nan"), 0.0]])
    losses, gradient = run(cross_entropy, logits, torch.tensor([1, 1, 0]), torch.ones(3))
    assert losses[:2].tolist() == [6e4, 0.0]
    assert gradient[:2].tolist() == [[1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]
    assert losses[2].isnan()


def test_gradient_is_written_over_the_logits():
    logits = torch.randn(4, 9, requires_grad=True).clone()
    losses = cross_entropy(logits, torch.tensor([0, 1, 2, 8]))
    losses.sum().backward(retain_graph=True)
    torch.testing.assert_close(logits.detach().sum(1), torch.zeros(4), atol=1e-6, rtol=0)
    with pytest.raises(RuntimeError, match="second backward"):
        losses.sum().backward()


def test_no_tokens_and_faults():
    assert cross_entropy(torch.empty(0, 5), torch.empty(0, dtype=torch.int64)).shape == (0,)
    with pytest.raises(RuntimeError, match="labels: expected numbers in \\[0, 5\\), found 2 to 5"):
        cross_entropy(torch.zeros(2, 5), torch.tensor([2, 5]))
    with pytest.raises(RuntimeError, match="found labels: int64 \\[3\\]"):
        cross_entropy(torch.zeros(2, 5), torch.tensor([0, 1, 2]))
    with pytest.raises(RuntimeError, match="labels: int32"):
        cross_entropy(torch.zeros(2, 5), torch.tensor([0, 1], dtype=torch.int32))


def test_opcheck():
    logits, labels, grad = inputs((4, 19), torch.float32, PLAIN)
    ops = torch.ops.megacore
    for with_sum in (False, True):
        torch.library.opcheck(ops.cross_entropy_sums.default, (logits, labels, 3, with_sum))
    vectors = (torch.ones(4), grad, grad, None)
    torch.library.opcheck(ops.cross_entropy_gradient_.default, (logits, labels, *vectors, 3))


def run_linear(function, hidden, weight, labels, factors, terms):
    leaves = [t.detach().clone().requires_grad_() for t in (hidden, weight)]
    total, losses = function(*leaves, labels, token_weights=factors, terms=terms)
    (total * 0.5).backward()
    return [total.detach(), losses, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize(
    ("dtype", "terms"),
    list(itertools.product([torch.float64, torch.float32, torch.bfloat16], TERMS[::3])),
    ids=lambda x: str(x)[:40],
)
def test_fused_with_the_projection(dtype, terms):
    for tokens, width, vocabulary in [(1, 3, 5), (67, 24, 301), (40, 7, 33)]:
        _, labels, factors = inputs((tokens, vocabulary), torch.float32, terms)
        generator = torch.Generator().manual_seed(tokens)
        hidden = torch.randn(tokens, width, generator=generator).to(dtype)
        weight = torch.randn(vocabulary, width, generator=generator).to(dtype)
        factors = factors.double() if dtype == torch.float64 else factors
        reference = linear_cross_entropy_reference
        exact = run_linear(
            reference, hidden.double(), weight.double(), labels, factors.double(), terms
        )
        theirs = run_linear(reference, hidden, weight, labels, factors, terms)
        ours = run_linear(linear_cross_entropy, hidden, weight, labels, factors, terms)
        for want, peer, got in zip(exact, theirs, ours, strict=True):
            bound = 2 * (peer.double() - want).abs().max()
            # Sums of one term per token, in another order; the exponential of a rounded logit.
            roundings = 4 + tokens**0.5 + 2 * (hidden @ weight.t()).abs().max().item()
            bound += roundings * torch.finfo(got.dtype).eps * want.abs().max().clamp(min=1.0)
            assert (got.double() - want).abs().max() <= bound


def test_fused_over_parts_of_the_vocabulary():
    hidden = torch.randn(21, 6, dtype=torch.float64)
    weight = torch.randn(30, 6, dtype=torch.float64)
    labels = torch.randint(30, (21,))
    want = run_linear(linear_cross_entropy_reference, hidden, weight, labels, None, PLAIN)
    pieces, starts = weight.split((11, 19)), (0, 11)

    def exchange(sums, other_rows):
        # What the process with the other rows would send for the same chunk of tokens.
        chunk = exchange.chunk
        exchange.chunk += 1
        part = slice(chunk, chunk + 1)
        start = starts[other_rows]
        other = logit_sums(
            hidden[part] @ pieces[other_rows].t(),
            labels[part],
            first_column=start,
            compute=torch.float64,
        )
        return merged([sums, other])

    assert hidden.shape[0] // CHUNKS == 1
    dhidden = torch.zeros_like(hidden)
    for here, other in ((0, 1), (1, 0)):
        exchange.chunk = 0
        leaves = [t.clone().requires_grad_() for t in (hidden, pieces[here])]
        total, losses = linear_cross_entropy(
            *leaves,
            labels,
            vocab_size=30,
            first_column=starts[here],
            exchange=lambda sums, other=other: exchange(sums, other),
        )
        (total * 0.5).backward()
        torch.testing.assert_close([total.detach(), losses], want[:2])
        rows = slice(starts[here], starts[here] + pieces[here].shape[0])
        torch.testing.assert_close(leaves[1].grad, want[3][rows])
        dhidden += leaves[0].grad
    torch.testing.assert_close(dhidden, want[2])


def test_fused_holds_a_sixteenth_of_the_logits(monkeypatch):
    held = []
    from megacore.ops import linear_cross_entropy as module

    def spy(logits, *args, **kwargs):
        held.append(logits.numel())
        return logit_sums(logits, *args, **kwargs)

    monkeypatch.setattr(module, "logit_sums", spy)
    hidden, weight = torch.randn(100, 4, requires_grad=True), torch.randn(50, 4)
    linear_cross_entropy(hidden, weight, torch.zeros(100, dtype=torch.int64))
    assert max(held) * CHUNKS <= 100 * 50
    assert sum(held) == 100 * 50
