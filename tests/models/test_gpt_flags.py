"""What each architecture flag does, by closed form, by count, or by what it must not change."""

import math

import pytest
import torch
import torch.nn.functional as F
from small_gpt import PADDED_VOCAB, ROTARY, SIZES, batch, build

from megacore.errors import ConfigError
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.ops.activation import activation
from megacore.testing.tolerance import expect_close, twice_torch_error

LAYER = "decoder.layers.0."
HIDDEN, HEADS, WIDTH, INNER = 60, 6, 14, 77


def _shapes(**changes):
    config = ModelConfig(**SIZES | changes)
    model = GPTModel(config, padded_vocab_size=PADDED_VOCAB, device="meta")
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def test_parameter_names_and_shapes():
    shapes = _shapes()
    layer = {
        "self_attention.linear_qkv.layer_norm_weight": (HIDDEN,),
        "self_attention.linear_qkv.layer_norm_bias": (HIDDEN,),
        "self_attention.linear_qkv.weight": (3 * HEADS * WIDTH, HIDDEN),
        "self_attention.linear_qkv.bias": (3 * HEADS * WIDTH,),
        "self_attention.linear_proj.weight": (HIDDEN, HEADS * WIDTH),
        "self_attention.linear_proj.bias": (HIDDEN,),
        "mlp.linear_fc1.layer_norm_weight": (HIDDEN,),
        "mlp.linear_fc1.layer_norm_bias": (HIDDEN,),
        "mlp.linear_fc1.weight": (INNER, HIDDEN),
        "mlp.linear_fc1.bias": (INNER,),
        "mlp.linear_fc2.weight": (HIDDEN, INNER),
        "mlp.linear_fc2.bias": (HIDDEN,),
    }
    expected = {
        f"decoder.layers.{i}.{name}": shape for i in range(3) for name, shape in layer.items()
    }
    expected |= {
        "embedding.word_embeddings.weight": (PADDED_VOCAB, HIDDEN),
        "embedding.position_embeddings.weight": (23, HIDDEN),
        "decoder.final_layernorm.weight": (HIDDEN,),
        "decoder.final_layernorm.bias": (HIDDEN,),
    }
    assert shapes == expected


def _changed(**changes):
    before, after = _shapes(), _shapes(**changes)
    removed = {n for n in before if n not in after}
    added = {n: s for n, s in after.items() if n not in before}
    resized = {n: s for n, s in after.items() if n in before and before[n] != s}
    return removed, added, resized


def _each_layer(*names):
    return {f"decoder.layers.{i}.{name}" for i in range(3) for name in names}


LINEARS = ("self_attention.linear_qkv", "self_attention.linear_proj")
LINEARS += ("mlp.linear_fc1", "mlp.linear_fc2")


def test_flags_that_add_or_remove_parameters():
    removed, added, resized = _changed(position_embedding_type="rope")
    assert (removed, added, resized) == ({"embedding.position_embeddings.weight"}, {}, {})
    assert _changed(position_embedding_type="none")[0] == removed
    _, added, _ = _changed(untie_embeddings_and_output_weights=True)
    assert added == {"output_layer.weight": (PADDED_VOCAB, HIDDEN)}
    removed, added, _ = _changed(add_bias_linear=False)
    assert (removed, added) == (_each_layer(*(f"{name}.bias" for name in LINEARS)), {})
    removed, _, _ = _changed(add_bias_linear=False, add_qkv_bias=True)
    assert removed == _each_layer(*(f"{name}.bias" for name in LINEARS[1:]))
    removed, added, _ = _changed(normalization="RMSNorm")
    norms = ("self_attention.linear_qkv.layer_norm_bias", "mlp.linear_fc1.layer_norm_bias")
    assert removed == _each_layer(*norms) | {"decoder.final_layernorm.bias"}
    _, added, _ = _changed(qk_layernorm=True)
    both = [f"self_attention.{x}_layernorm.{kind}" for x in "qk" for kind in ("weight", "bias")]
    assert added == dict.fromkeys(_each_layer(*both), (WIDTH,))


def test_flags_that_resize():
    _, _, resized = _changed(group_query_attention=True, num_query_groups=2)
    assert resized[LAYER + "self_attention.linear_qkv.weight"] == ((HEADS + 4) * WIDTH, HIDDEN)
    _, _, resized = _changed(swiglu=True)
    assert resized[LAYER + "mlp.linear_fc1.weight"] == (2 * INNER, HIDDEN)
    assert LAYER + "mlp.linear_fc2.weight" not in resized
    # --num-query-groups alone changes nothing.
    assert _changed(num_query_groups=2) == (set(), {}, {})


ACTIVATIONS = {
    "gelu_tanh": lambda x: (
        0.5 * x * (1 + torch.tanh(0.7978845608028654 * x * (1 + 0.044715 * x * x)))
    ),
    "gelu_erf": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "squared_relu": lambda x: torch.where(x > 0, x * x, 0.0),
    "gelu_quick": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}
FLAGS_OF_ACTIVATION = {
    "gelu_tanh": [{}, {"openai_gelu": True, "bias_gelu_fusion": False}],
    "gelu_erf": [{"bias_gelu_fusion": False}, {"add_bias_linear": False}],
    "gelu_quick": [{"quick_gelu": True}],
    "squared_relu": [{"squared_relu": True}],
    "silu": [{"swiglu": True}],
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation(name):
    torch.manual_seed(1)
    x = 3 * torch.randn(5, 34, dtype=torch.float64)
    expect_close(activation(x, name), ACTIVATIONS[name](x), bound=1e-14)
    for flags in FLAGS_OF_ACTIVATION[name]:
        spec = build(**flags).spec
        assert (spec.activation, spec.gated_mlp) == (name, name == "silu")


@pytest.mark.parametrize(
    ("flags", "activation"),
    [
        ({"swiglu": True}, "silu"),
        ({"geglu": True}, "gelu_tanh"),
        ({"geglu": True, "add_bias_linear": False}, "gelu_erf"),
        ({"geglu": True, "quick_gelu": True}, "gelu_quick"),
    ],
)
def test_gated_mlp(flags, activation):
    model = build(ffn_hidden_size=77, **flags)
    mlp = model.decoder.layers["0"].mlp
    x = torch.randn(2, 5, HIDDEN, dtype=torch.float64)
    inner = F.linear(x, mlp.linear_fc1.weight, mlp.linear_fc1.bias)
    inner = ACTIVATIONS[activation](inner[..., :77]) * inner[..., 77:]
    expected = F.linear(inner, mlp.linear_fc2.weight, mlp.linear_fc2.bias)
    expect_close(mlp(x), expected, bound=1e-12)


def _with_norms_set(model, weight, bias):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.fill_(bias if name.endswith("bias") else weight)
    return model


def test_layernorm_1p_stores_weights_minus_one():
    tokens, _ = batch()
    plain = _with_norms_set(build(), 1.25, 0.5)
    shifted = _with_norms_set(build(apply_layernorm_1p=True), 0.25, 0.5)
    expect_close(plain(tokens), shifted(tokens), bound=1e-12)


def test_query_key_layer_scaling_changes_range_not_results():
    tokens, _ = batch()
    expect_close(build(apply_query_key_layer_scaling=True)(tokens), build()(tokens), bound=1e-12)


def test_residual_after_norm():
    """With branches that write nothing, each layer is two norms and nothing else."""
    model = build(apply_residual_connection_post_layernorm=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "linear_proj" in name or "linear_fc2" in name:
                parameter.zero_()
    tokens, _ = batch()
    weights = dict(model.named_parameters())
    x = weights["embedding.word_embeddings.weight"][tokens]
    x = x + weights["embedding.position_embeddings.weight"][: tokens.shape[1]]
    for i in range(3):
        for part in ("self_attention.linear_qkv", "mlp.linear_fc1"):
            prefix = f"decoder.layers.{i}.{part}.layer_norm_"
            x = F.layer_norm(x, (HIDDEN,), weights[prefix + "weight"], weights[prefix + "bias"])
    final = "decoder.final_layernorm."
    x = F.layer_norm(x, (HIDDEN,), weights[final + "weight"], weights[final + "bias"])
    expected = x @ weights["embedding.word_embeddings.weight"].t()
    expect_close(model(tokens), expected, bound=1e-11)


def test_norm_epsilon_and_attention_position_types_matter():
    tokens, _ = batch()
    base = build()(tokens)
    assert not torch.allclose(build(norm_epsilon=0.1)(tokens), base)
    kinds = [build(position_embedding_type=kind) for kind in ("rope", "none")]
    kinds.append(build(position_embedding_type="rope", rotary_base=77))
    kinds.append(build(position_embedding_type="rope", rotary_percent=0.6))
    kinds.append(build(position_embedding_type="rope", rotary_interleaved=True))
    outputs = [model(tokens) for model in kinds]
    for i, first in enumerate(outputs):
        assert not any(torch.allclose(first, second) for second in outputs[:i])


def test_without_positions_only_the_set_of_earlier_tokens_counts():
    model = build(position_embedding_type="none")
    tokens, _ = batch()
    shuffled = tokens.clone()
    shuffled[:, :-1] = tokens[:, :-1].flip(1)
    # One layer sees a set; deeper layers see prefixes, so one layer is left.
    for name in list(model.decoder.layers)[1:]:
        del model.decoder.layers[name]
    expect_close(model(shuffled)[:, -1], model(tokens)[:, -1], bound=1e-12)


def test_fp32_residual():
    tokens, _ = batch()
    seen = []
    model = build(dtype=torch.bfloat16, fp32_residual_connection=True)
    for layer in model.decoder.layers.values():
        layer.register_forward_hook(lambda _, args, out: seen.append((args[0].dtype, out.dtype)))
    assert model(tokens).dtype == torch.bfloat16
    assert seen == [(torch.float32, torch.float32)] * 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("settings", [{}, ROTARY, {"fp32_residual_connection": True}])
def test_low_precision_error_is_that_of_its_roundings(dtype, settings):
    """Against float64 with the same rounded weights, the error is a few units of the dtype."""
    tokens, labels = batch()
    settings = dict(settings, init_method_std=0.05)
    low = build(dtype=dtype, **settings)
    exact = build(**settings | {"fp32_residual_connection": False})
    exact.load_state_dict({k: v.double() for k, v in low.state_dict().items()})
    wanted = exact(tokens)
    # Ten roundings a layer, adding up like independent errors, four standard deviations wide.
    units = 4 * math.sqrt(10 * 3) * torch.finfo(dtype).eps / 2
    expect_close(low(tokens), wanted, bound=units * wanted.abs().max().item())
    loss = low(tokens, labels=labels)
    assert loss.dtype == torch.float32
    loss.mean().backward()
    assert all(p.grad.isfinite().all() for p in low.parameters())


@pytest.mark.parametrize("settings", [{"hidden_dropout": 0.3}, {"attention_dropout": 0.3}])
def test_dropout_acts_in_training_only(settings):
    tokens, _ = batch()
    model, plain = build(**settings), build()
    expect_close(model.eval()(tokens), plain(tokens))
    model.train()
    torch.manual_seed(1)
    first = model(tokens)
    assert not torch.allclose(first, model(tokens))
    torch.manual_seed(1)
    assert torch.equal(first, model(tokens))


def test_fp16_cross_entropy():
    tokens, labels = batch()
    config = ModelConfig(**SIZES)
    half = GPTModel(
        config, padded_vocab_size=PADDED_VOCAB, dtype=torch.float16, fp16_lm_cross_entropy=True
    )
    full = build(dtype=torch.float16)
    half.load_state_dict(full.state_dict())
    coarse, fine = half(tokens, labels=labels), full(tokens, labels=labels)
    assert torch.equal(coarse, coarse.half().float())
    assert not torch.equal(fine, fine.half().float())
    logits = full(tokens).detach()
    exact = F.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none")
    plain = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), reduction="none")
    expect_close(fine.flatten(), exact, bound=twice_torch_error(plain, exact))


def test_tied_gradient_is_the_sum_of_both_uses():
    tokens, labels = batch()
    tied, untied = build(), build(untie_embeddings_and_output_weights=True)
    state = tied.state_dict()
    untied.load_state_dict(
        {**state, "output_layer.weight": state["embedding.word_embeddings.weight"]}
    )
    tied(tokens, labels=labels).sum().backward()
    untied(tokens, labels=labels).sum().backward()
    total = untied.embedding.word_embeddings.weight.grad + untied.output_layer.weight.grad
    expect_close(tied.embedding.word_embeddings.weight.grad, total, bound=1e-10)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"hidden_size": None}, "--hidden-size"),
        ({"kv_channels": None, "num_attention_heads": 7}, "MC0103"),
        ({"group_query_attention": True, "num_query_groups": 4}, "MC0104"),
        ({"position_embedding_type": "rope", "kv_channels": 5}, "MC0106"),
        ({"max_position_embeddings": None}, "--max-position-embeddings"),
    ],
)
def test_sizes_that_do_not_fit(changes, text):
    with pytest.raises(ConfigError, match=text):
        build(**changes)
