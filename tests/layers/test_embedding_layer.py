"""Embedding lookup; its gradient sums in float32 whatever the dtype of the table."""

import pytest
import torch
import torch.nn.functional as F

from megacore.layers.embedding import Embedding, lookup
from megacore.testing.tolerance import expect_close


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_gradient_of_frequent_tokens(dtype):
    torch.manual_seed(2)
    table = torch.randn(5, 7).to(dtype).requires_grad_()
    indices = torch.randint(0, 4, (3, 1000))
    grad = torch.rand(3, 1000, 7).to(dtype)
    found = lookup(table, indices)
    assert torch.equal(found, F.embedding(indices, table))
    found.backward(grad)
    exact = torch.zeros(5, 7, dtype=torch.float64)
    exact.index_add_(0, indices.flatten(), grad.flatten(0, 1).double())
    # One rounding to the table's dtype, behind a sum of about 750 terms in float32 or float64.
    eps = torch.finfo(dtype).eps + 750 * torch.finfo(torch.float32).eps
    expect_close(table.grad, exact, bound=eps * exact.abs())
    assert torch.equal(table.grad[4], torch.zeros(7, dtype=dtype))


def test_sum_dropout_and_dtype():
    embedding = Embedding(
        9, 4, num_positions=6, dropout=0.5, fp32_residual=True, dtype=torch.bfloat16, device=None
    )
    with torch.no_grad():
        embedding.word_embeddings.weight.copy_(torch.randn(9, 4))
        embedding.position_embeddings.weight.copy_(torch.randn(6, 4))
    tokens, positions = torch.randint(0, 9, (50, 3)), torch.tensor([[0, 5, 1]])
    whole = embedding.eval()(tokens, positions)
    assert whole.dtype == torch.float32
    words = embedding.word_embeddings.weight[tokens]
    assert torch.equal(whole, (words + embedding.position_embeddings.weight[positions]).float())
    dropped = embedding.train()(tokens, positions)
    kept = dropped != 0
    assert torch.equal(dropped[kept], 2 * whole[kept])
    assert 0.4 < kept.double().mean() < 0.6
