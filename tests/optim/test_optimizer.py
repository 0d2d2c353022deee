"""The optimizer against torch.optim, a float64 reference, and its own promises."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from megacore.errors import CheckpointError, UsageError
from megacore.optim import Rates, build_optimizer
from megacore.optim.config import OptimizerConfig, PrecisionConfig
from megacore.optim.groups import GroupKey
from megacore.testing.tolerance import expect_close, twice_torch_error


class Tied(nn.Module):
    """A model of awkward shapes whose embedding is also its output layer."""

    def __init__(self, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Module()
        self.embedding.word_embeddings = nn.Embedding(37, 13)
        self.first = nn.Linear(13, 7)
        self.norm = nn.LayerNorm(7)
        self.second = nn.Linear(7, 13, bias=False)
        self.output_layer = nn.Linear(13, 37, bias=False)
        if tied:
            self.output_layer.weight = self.embedding.word_embeddings.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.norm(self.first(self.embedding.word_embeddings(tokens)))
        logits = self.output_layer(self.second(torch.tanh(hidden)))
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1), tokens.roll(1, 1).flatten()
        )


def make_model(dtype: torch.dtype = torch.float32, *, tied: bool = True) -> Tied:
    torch.manual_seed(3)
    return Tied(tied=tied).to(dtype)


def batches(count: int, *, seed: int = 11) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 37, (3, 5), generator=generator) for _ in range(count)]


def torch_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    named = list(model.named_parameters())
    return [
        {"params": [p for _, p in named if p.ndim != 1], "weight_decay": weight_decay},
        {"params": [p for _, p in named if p.ndim == 1], "weight_decay": 0.0},
    ]


def lr_at(step: int) -> float:
    return 0.02 * (1.0 - step / 40)


def train_torch(model: nn.Module, config: OptimizerConfig, steps: int) -> list[float]:
    """torch.optim with the same groups, clipping and rates; returns the norms."""
    groups = torch_groups(model, config.weight_decay)
    if config.optimizer == "adam":
        reference: torch.optim.Optimizer = torch.optim.AdamW(
            groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_eps
        )
    else:
        reference = torch.optim.SGD(groups, lr=1.0, momentum=config.sgd_momentum)
    norms = []
    for step, tokens in enumerate(batches(steps)):
        for group in reference.param_groups:
            group["lr"] = lr_at(step)
        reference.zero_grad()
        model(tokens).backward()
        max_norm = config.clip_grad or math.inf
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), max_norm)))
        reference.step()
    return norms


@pytest.mark.parametrize("clip", [0.0, 0.25])
@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(weight_decay=0.1),
        OptimizerConfig(weight_decay=0.0, adam_beta1=0.8, adam_beta2=0.95, adam_eps=1e-6),
        OptimizerConfig(optimizer="sgd", weight_decay=0.01),
        OptimizerConfig(optimizer="sgd", weight_decay=0.0, sgd_momentum=0.0),
    ],
    ids=["adam", "adam-plain", "sgd", "sgd-plain"],
)
def test_fp32_training_is_as_close_to_float64_as_torch(
    config: OptimizerConfig, clip: float
) -> None:
    config = OptimizerConfig(**{**vars(config), "clip_grad": clip})
    exact, by_torch, ours = make_model(torch.float64), make_model(), make_model()
    exact_norms = train_torch(exact, config, 25)
    train_torch(by_torch, config, 25)
    optimizer = build_optimizer(ours, optimizer=config, precision=PrecisionConfig())
    for step, tokens in enumerate(batches(25)):
        optimizer.zero_grad()
        optimizer.backward(ours(tokens))
        result = optimizer.step(Rates(lr_at(step), config.weight_decay))
        assert result.updated
        assert result.grad_norm == pytest.approx(exact_norms[step], rel=1e-4)
    for (name, mine), theirs, true in zip(
        ours.named_parameters(), by_torch.parameters(), exact.parameters(), strict=True
    ):
        bound = twice_torch_error(theirs, true)
        # Both are rounded sums of 25 updates; the errors are of one size but not equal, so one
        # rounding of the largest element per update is allowed beside twice torch's own error.
        bound += 25 * torch.finfo(torch.float32).eps * float(true.detach().abs().max())
        expect_close(mine, true.detach(), bound=bound, name=name)


def float64_adamw(
    state: dict[str, tuple[Tensor, Tensor, Tensor]],
    grads: dict[str, Tensor],
    *,
    lr: float,
    wd: float,
    step: int,
    clip: float,
) -> float:
    """A transcription of AdamW with global clipping, in float64; returns the norm."""
    norm = math.sqrt(sum(float(g.square().sum()) for g in grads.values()))
    factor = min(1.0, clip / (norm + 1e-6))
    for name, (param, first, second) in state.items():
        grad = grads[name] * factor
        first.mul_(0.9).add_(0.1 * grad)
        second.mul_(0.999).add_(0.001 * grad * grad)
        root = (second / (1 - 0.999**step)).sqrt() + 1e-8
        decay = 0.0 if param.ndim == 1 else wd
        param.mul_(1 - lr * decay).sub_(lr * (first / (1 - 0.9**step)) / root)
    return norm


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [
        (torch.bfloat16, PrecisionConfig(bf16=True)),
        (torch.float16, PrecisionConfig(fp16=True, initial_loss_scale=256.0)),
        (
            torch.float16,
            PrecisionConfig(fp16=True, loss_scale=64.0, accumulate_allreduce_grads_in_fp32=True),
        ),
    ],
    ids=["bf16", "fp16", "fp16-summed-in-fp32"],
)
def test_low_precision_follows_float64_on_the_same_gradients(
    dtype: torch.dtype, precision: PrecisionConfig
) -> None:
    """Main parameters follow a float64 AdamW that is given the very gradients autograd made."""
    model = make_model(dtype)
    optimizer = build_optimizer(
        model,
        optimizer=OptimizerConfig(weight_decay=0.1, clip_grad=0.5),
        precision=precision,
    )
    seen: dict[str, list[Tensor]] = {}
    for name, param in model.named_parameters():
        param.register_hook(lambda grad, name=name: seen.setdefault(name, []).append(grad.clone()))
    half_sums = precision.fp16 and not precision.accumulate_allreduce_grads_in_fp32
    sum_dtype = torch.float16 if half_sums else torch.float64
    state = {
        name: (p.detach().double(), p.new_zeros(p.shape).double(), p.new_zeros(p.shape).double())
        for name, p in model.named_parameters()
    }
    for step in range(1, 9):
        optimizer.zero_grad()
        for name in seen:
            seen[name].clear()
        for tokens in batches(3, seed=step):
            optimizer.backward(model(tokens))
        scale = optimizer.loss_scale * 3
        sums = {name: sum(g.to(sum_dtype) for g in parts) for name, parts in seen.items()}
        grads = {name: total.double() / scale for name, total in sums.items()}
        norm = float64_adamw(state, grads, lr=0.01, wd=0.1, step=step, clip=0.5)
        result = optimizer.step(Rates(0.01, 0.1), grad_divisor=3)
        assert result.updated
        assert result.grad_norm == pytest.approx(norm, rel=1e-6)
    tensors = optimizer.state_tensors()
    for name, param in model.named_parameters():
        true = state[name][0]
        # One fp32 rounding of the parameter and one of the update (up to lr) per step.
        bound = 8 * torch.finfo(torch.float32).eps * (float(true.abs().max()) + 0.1)
        expect_close(tensors[f"main_param.{name}"], true, bound=bound, name=name)
        assert torch.equal(param, tensors[f"main_param.{name}"].to(dtype)), name


def test_gradients_are_summed_in_fp32() -> None:
    """A sum that bfloat16 could not hold: 1 + 255 * 2^-9."""
    layer = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    optimizer = build_optimizer(
        layer, optimizer=OptimizerConfig(), precision=PrecisionConfig(bf16=True)
    )
    optimizer.backward(layer(torch.ones(1, 1, dtype=torch.bfloat16)).sum())
    for _ in range(255):
        small = torch.full((1, 1), 2.0**-9, dtype=torch.bfloat16)
        optimizer.backward(layer(small).sum())
    assert dict(optimizer.named_gradients())["weight"].item() == 1 + 255 * 2.0**-9
    assert layer.weight.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_memory_is_moved_between_steps(dtype: torch.dtype) -> None:
    model = make_model(dtype)
    optimizer = build_optimizer(
        model, optimizer=OptimizerConfig(), precision=PrecisionConfig(bf16=dtype != torch.float32)
    )
    where = [p.data_ptr() for p in model.parameters()]
    grads = [bucket.grad.data_ptr() for bucket in optimizer.buckets]
    for tokens in batches(3):
        optimizer.zero_grad()
        optimizer.backward(model(tokens))
        optimizer.step(Rates(0.01, 0.01))
    assert [p.data_ptr() for p in model.parameters()] == where
    assert [bucket.grad.data_ptr() for bucket in optimizer.buckets] == grads
    if dtype == torch.float32:
        for bucket in optimizer.buckets:
            start, end = bucket.grad.data_ptr(), bucket.grad.data_ptr() + bucket.grad.nbytes
            assert all(start <= p.grad.data_ptr() < end for p in bucket.parameters)


def test_groups_follow_the_rule() -> None:
    model = make_model(tied=False)
    optimizer = build_optimizer(
        model, optimizer=OptimizerConfig(decoupled_lr=1.0), precision=PrecisionConfig()
    )
    groups: dict[GroupKey, set[str]] = {}
    for bucket in optimizer.buckets:
        for param in bucket.params:
            groups.setdefault(param.key, set()).add(param.name)
    # One pass of the update per group, whatever the order of the parameters in the model.
    assert len(optimizer.buckets) == 1
    assert len(optimizer.buckets[0].runs) == 3
    assert groups == {
        GroupKey(): {"first.weight", "second.weight"},
        GroupKey(wd_mult=0.0): {"first.bias", "norm.weight", "norm.bias"},
        GroupKey(decoupled=True): {"embedding.word_embeddings.weight", "output_layer.weight"},
    }


def test_decoupled_rate_moves_only_the_vocabulary_weights() -> None:
    model = make_model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(
        model, optimizer=OptimizerConfig(decoupled_lr=1.0), precision=PrecisionConfig()
    )
    optimizer.backward(model(batches(1)[0]))
    optimizer.step(Rates(0.0, 0.0, decoupled_lr=0.1))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {"embedding.word_embeddings.weight"}
    with pytest.raises(UsageError, match="decoupled"):
        optimizer.step(Rates(0.1, 0.0))


def test_multipliers_scale_rate_and_decay() -> None:
    weight = nn.Parameter(torch.full((3, 3), 2.0))
    other = nn.Parameter(torch.full((5, 1), 2.0))
    optimizer = build_optimizer(
        [{"weight": weight, "other": other}],
        optimizer=OptimizerConfig(optimizer="sgd", sgd_momentum=0.0, clip_grad=0.0),
        precision=PrecisionConfig(),
        rule=lambda name, _: GroupKey(wd_mult=2.0, lr_mult=0.5) if name == "other" else GroupKey(),
    )
    optimizer.step(Rates(lr=0.25, weight_decay=0.5))
    assert torch.equal(weight, torch.full((3, 3), 2.0 - 0.25 * 0.5 * 2.0))
    assert torch.equal(other, torch.full((5, 1), 2.0 - 0.125 * 1.0 * 2.0))


def test_tied_parameter_is_updated_once() -> None:
    optimizer = build_optimizer(
        make_model(), optimizer=OptimizerConfig(), precision=PrecisionConfig()
    )
    names = [param.name for bucket in optimizer.buckets for param in bucket.params]
    assert len(names) == len(set(names)) == 6
    assert "output_layer.weight" not in names


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_not_finite_changes_nothing(dtype: torch.dtype, bad: float) -> None:
    model = make_model(dtype)
    optimizer = build_optimizer(
        model, optimizer=OptimizerConfig(), precision=PrecisionConfig(bf16=dtype != torch.float32)
    )
    for poison in (False, True):
        optimizer.zero_grad()
        optimizer.backward(model(batches(1)[0]))
        if poison:
            dict(optimizer.named_gradients())["first.bias"][2] = bad
            before = {n: t.clone() for n, t in optimizer.state_tensors().items()}
            weights = [p.detach().clone() for p in model.parameters()]
        result = optimizer.step(Rates(0.1, 0.1))
        assert result.updated is not poison
    assert not math.isfinite(result.grad_norm)
    assert optimizer.num_steps == 1
    assert all(torch.equal(t, before[n]) for n, t in optimizer.state_tensors().items())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


def test_fp16_overflow_lowers_the_scale_and_training_recovers() -> None:
    model = make_model(torch.float16)
    precision = PrecisionConfig(fp16=True, hysteresis=1)
    optimizer = build_optimizer(model, optimizer=OptimizerConfig(), precision=precision)
    assert optimizer.loss_scale == 2.0**32
    updates = []
    for tokens in batches(1) * 40:
        optimizer.zero_grad()
        optimizer.backward(model(tokens))
        updates.append(optimizer.step(Rates(0.01, 0.0)).updated)
    skipped = updates.index(True)
    assert skipped > 0
    assert all(updates[skipped:])
    assert optimizer.loss_scale == 2.0 ** (32 - skipped)
    assert optimizer.num_steps == 40 - skipped
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_zeros_are_counted_without_the_gaps_between_parameters() -> None:
    params = [("a", nn.Parameter(torch.ones(3, 7))), ("b", nn.Parameter(torch.ones(65)))]
    optimizer = build_optimizer(
        [dict(params)], optimizer=OptimizerConfig(), precision=PrecisionConfig()
    )
    assert optimizer.step(Rates(0.0, 0.0), count_zero_grads=True).num_zeros == 21 + 65
    optimizer.zero_grad()
    params[0][1].grad[1, 2] = 5.0
    params[1][1].grad[64] = 1.0
    result = optimizer.step(Rates(0.0, 0.0), count_zero_grads=True)
    assert result.num_zeros == 21 + 65 - 2
    assert result.grad_norm == pytest.approx(math.sqrt(26.0))
    assert optimizer.step(Rates(0.0, 0.0)).num_zeros is None


def test_a_replaced_gradient_is_noticed() -> None:
    model = make_model()
    optimizer = build_optimizer(model, optimizer=OptimizerConfig(), precision=PrecisionConfig())
    model.zero_grad(set_to_none=True)
    model(batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match="zero_grad"):
        optimizer.step(Rates(0.1, 0.1))
    optimizer.zero_grad()
    model(batches(1)[0]).backward()
    assert optimizer.step(Rates(0.1, 0.1)).updated


@pytest.mark.parametrize("kind", ["adam", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_state_round_trip_is_bitwise(kind: str, dtype: torch.dtype) -> None:
    config = OptimizerConfig(optimizer=kind, weight_decay=0.1)
    precision = PrecisionConfig(
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        initial_loss_scale=2.0**20,
        loss_scale_window=3,
    )

    def run(model: nn.Module, optimizer: object, tokens: list[Tensor]) -> None:
        for piece in tokens:
            optimizer.zero_grad()
            optimizer.backward(model(piece))
            optimizer.step(Rates(0.02, 0.1))

    whole, half = make_model(dtype), make_model(dtype)
    first = build_optimizer(whole, optimizer=config, precision=precision)
    run(whole, first, batches(12))
    second = build_optimizer(half, optimizer=config, precision=precision)
    run(half, second, batches(12)[:6])
    tensors = {name: t.clone() for name, t in second.state_tensors().items()}
    values = second.state_values()
    resumed = Tied().to(dtype)
    third = build_optimizer(resumed, optimizer=config, precision=precision)
    resumed.load_state_dict(half.state_dict())
    third.load_state(tensors, values)
    run(resumed, third, batches(12)[6:])
    assert third.state_values() == first.state_values()
    for name, tensor in first.state_tensors().items():
        assert torch.equal(third.state_tensors()[name], tensor), name
    for mine, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_a_state_that_does_not_fit_is_refused_whole() -> None:
    model = make_model()
    optimizer = build_optimizer(model, optimizer=OptimizerConfig(), precision=PrecisionConfig())
    optimizer.backward(model(batches(1)[0]))
    optimizer.step(Rates(0.1, 0.1))
    tensors = {name: t.clone() for name, t in optimizer.state_tensors().items()}
    before = {name: t.clone() for name, t in tensors.items()}
    tensors["exp_avg.first.weight"] = torch.zeros(2, 2)
    tensors["exp_avg.extra"] = torch.zeros(1)
    del tensors["exp_avg_sq.norm.bias"]
    with pytest.raises(CheckpointError) as caught:
        optimizer.load_state(tensors, optimizer.state_values())
    for part in ("missing: exp_avg_sq.norm.bias", "unexpected: exp_avg.extra", "[7, 13]", "[2, 2]"):
        assert part in str(caught.value)
    assert all(torch.equal(t, before[n]) for n, t in optimizer.state_tensors().items())
    with pytest.raises(CheckpointError, match="step count"):
        optimizer.load_state(before, {"step": "x"})


def test_main_parameters_follow_newly_loaded_weights() -> None:
    model, other = make_model(torch.bfloat16), Tied().to(torch.bfloat16)
    optimizer = build_optimizer(
        model, optimizer=OptimizerConfig(), precision=PrecisionConfig(bf16=True)
    )
    model.load_state_dict(other.state_dict())
    optimizer.refresh_main_params()
    tensors = optimizer.state_tensors()
    for name, param in other.named_parameters():
        assert torch.equal(tensors[f"main_param.{name}"], param.float())
    total = sum(float(p.detach().double().square().sum()) for p in other.parameters())
    assert optimizer.params_norm() == pytest.approx(math.sqrt(total), rel=1e-6)


def test_models_that_cannot_be_trained_are_refused() -> None:
    frozen = make_model().requires_grad_(False)
    with pytest.raises(UsageError, match="no trainable parameter"):
        build_optimizer(frozen, optimizer=OptimizerConfig(), precision=PrecisionConfig())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_can_be_planned_without_memory(dtype: torch.dtype) -> None:
    reports = []
    for device in ("cpu", "meta"):
        model = nn.Linear(33, 7, dtype=dtype, device=device)
        optimizer = build_optimizer(
            model, optimizer=OptimizerConfig(), precision=PrecisionConfig(bf16=dtype.itemsize == 2)
        )
        reports.append(optimizer.memory_report())
    assert reports[0] == reports[1]
    assert reports[0].total > 0
