"""Distributions of sampling against closed forms; draws that do not depend on the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.errors import UsageError
from megacore.inference.sampling import SamplingParams, choose, probabilities, prompt_generators
from megacore.testing.tolerance import expect_close

P = torch.tensor([[0.05, 0.4, 0.25, 0.2, 0.1]], dtype=torch.float64)


def _given(weights):
    weights = torch.tensor([weights], dtype=torch.float64)
    return weights / weights.sum()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.05, 0.4, 0.25, 0.2, 0.1]),
        ({"temperature": 0.5}, [0.05**2, 0.4**2, 0.25**2, 0.2**2, 0.1**2]),
        ({"top_k": 2}, [0, 0.4, 0.25, 0, 0]),
        ({"top_k": 99}, [0.05, 0.4, 0.25, 0.2, 0.1]),
        # The token that crosses p stays.
        ({"top_p": 0.5}, [0, 0.4, 0.25, 0, 0]),
        ({"top_p": 0.3}, [0, 0.4, 0, 0, 0]),
        ({"top_p": 0.7}, [0, 0.4, 0.25, 0.2, 0]),
        # The best one stays even when it alone crosses.
        ({"top_p": 1e-9}, [0, 0.4, 0, 0, 0]),
        ({"top_p": 1.0}, [0.05, 0.4, 0.25, 0.2, 0.1]),
        # Temperature comes before the limit.
        ({"temperature": 0.5, "top_p": 0.55}, [0, 0.4**2, 0, 0, 0]),
    ],
)
def test_closed_forms(settings, expected):
    found = probabilities(P.log() + 3.0, SamplingParams(**settings))
    expect_close(found, _given(expected), bound=1e-14)


def test_ties_at_the_kth_logit_stay():
    found = probabilities(torch.tensor([[1.0, 1.0, 0.0]]), SamplingParams(top_k=2))
    expect_close(found, torch.tensor([[0.5, 0.5, 0.0]]), bound=1e-7)
    found = probabilities(torch.tensor([[1.0, 1.0, 1.0]]), SamplingParams(top_k=2))
    assert (found > 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=9), st.floats(0.01, 0.99))
def test_top_p_against_a_loop(logits, top_p):
    row = torch.tensor([logits], dtype=torch.float64)
    found = probabilities(row, SamplingParams(top_p=top_p))[0]
    weights = row.softmax(1)[0]
    kept, total = [], 0.0
    for index in sorted(range(len(logits)), key=lambda i: -weights[i].item()):
        if kept and total > top_p + 1e-12:
            break
        kept.append(index)
        total += weights[index].item()
    expected = torch.zeros_like(weights)
    expected[kept] = weights[kept] / weights[kept].sum()
    near_edge = any(abs(weights[kept[:n]].sum().item() - top_p) < 1e-9 for n in range(len(kept)))
    if not near_edge:
        expect_close(found, expected, bound=1e-12)


def test_draws_follow_the_distribution():
    count = 40_000
    params = SamplingParams(top_k=4)
    generator = torch.Generator().manual_seed(3)
    logits = P.log().float()
    drawn = [int(choose(logits, params, [generator])) for _ in range(count)]
    share = torch.bincount(torch.tensor(drawn), minlength=5).double() / count
    expected = _given([0, 0.4, 0.25, 0.2, 0.1])[0]
    # Five standard deviations of a binomial share.
    deviation = (expected * (1 - expected) / count).sqrt()
    expect_close(share, expected, bound=5 * deviation)
    assert share[0] == 0


def test_greedy_takes_the_first_best():
    rows = torch.tensor([[0.0, 2.0, 2.0], [5.0, 1.0, 1.0]])
    assert choose(rows, SamplingParams(top_k=1), []).tolist() == [1, 0]


def test_generators_depend_on_prompt_and_repetition_only():
    def draws(prompts):
        return [torch.rand(1, generator=g).item() for g in prompt_generators(prompts, 7)]

    together = draws([[1, 2], [3], [1, 2]])
    assert together[0] != together[2]
    assert draws([[3]]) == together[1:2]
    assert draws([[9], [1, 2]])[1] == together[0]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"temperature": 0.0}, "temperature must be in"),
        ({"temperature": 101.0}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 1.5}, "top_p must be in"),
        ({"top_k": 3, "top_p": 0.5}, "exclude each other"),
        ({"tokens_to_generate": -1}, "at least 0"),
        ({"tokens_to_generate": 0}, "log_probs"),
        ({"stop": ("",)}, "empty"),
    ],
)
def test_bad_parameters(settings, text):
    with pytest.raises(UsageError, match=text):
        SamplingParams(**settings).check()
