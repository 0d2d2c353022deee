"""Generation against naive recomputation, rows alone, and Hugging Face."""

import pytest
import torch
import transformers
from byte_tokenizer import ByteTokenizer

from megacore.errors import UsageError
from megacore.inference.engine import Engine, generate
from megacore.inference.sampling import SamplingParams
from megacore.models.config import ModelConfig
from megacore.models.gpt import GPTModel
from megacore.models.initialization import init_weights
from megacore.testing.hf_weights import from_gpt2, from_llama
from megacore.testing.tolerance import expect_close

TOKENIZER = ByteTokenizer()
PROMPTS = ["def f(x):", "a", "", "The quick brown", "caf\u00e9 ", "a"]
SETTINGS = dict(  # noqa: C408
    num_layers=2,
    hidden_size=48,
    num_attention_heads=4,
    max_position_embeddings=64,
    init_method_std=0.3,
)
KINDS = {
    "learned": {},
    "rotary": {
        "position_embedding_type": "rope",
        "group_query_attention": True,
        "num_query_groups": 2,
        "swiglu": True,
        "normalization": "RMSNorm",
    },
}
GREEDY = SamplingParams(tokens_to_generate=20, top_k=1, stop_at_eod=False)
DRAWN = SamplingParams(tokens_to_generate=20, top_p=0.9, stop_at_eod=False)


def _model(kind="learned", dtype=torch.float64, **changes):
    config = ModelConfig(**SETTINGS | KINDS[kind] | changes)
    model = GPTModel(config, padded_vocab_size=384, dtype=dtype)
    init_weights(model, config, seed=2)
    return model


def _naive(model, prompt, count):
    ids = TOKENIZER.tokenize(prompt) or [TOKENIZER.eod]
    start = len(ids)
    for _ in range(count):
        logits = model(torch.tensor([ids]))[0, -1, : TOKENIZER.vocab_size]
        ids.append(int(logits.argmax()))
    return ids[start:]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_full_recomputation(kind):
    model = _model(kind)
    results = generate(model, TOKENIZER, PROMPTS, GREEDY)
    model.eval()
    for result, prompt in zip(results, PROMPTS, strict=True):
        assert result.tokens == _naive(model, prompt, 20)
        assert result.text == TOKENIZER.detokenize(result.tokens)
        assert result.finish_reason == "length"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("params", [GREEDY, DRAWN])
@pytest.mark.parametrize("max_batch_size", [1, 2, 32])
def test_ragged_batch_equals_one_by_one(kind, params, max_batch_size):
    model = _model(kind)
    engine = Engine(model, TOKENIZER, max_batch_size=max_batch_size)
    together = [result.tokens for result in engine.generate(PROMPTS, params)]
    alone = [engine.generate([prompt], params)[0].tokens for prompt in PROMPTS[:5]]
    assert together[:5] == alone
    # The repeated prompt continues in the same way when greedy, and in another way when drawn.
    assert (together[5] == together[1]) == params.is_greedy


def test_same_seed_same_text_other_seed_other_text():
    model = _model()
    first, again, other = (
        generate(
            model,
            TOKENIZER,
            PROMPTS,
            SamplingParams(tokens_to_generate=20, seed=seed, stop_at_eod=False),
        )
        for seed in (1, 1, 2)
    )
    assert [r.tokens for r in first] == [r.tokens for r in again]
    assert [r.tokens for r in first] != [r.tokens for r in other]


def test_padding_ids_are_never_generated():
    model = _model(untie_embeddings_and_output_weights=True)
    with torch.no_grad():
        model.decoder.final_layernorm.bias.fill_(1.0)
        model.output_layer.weight[TOKENIZER.vocab_size :] = 10.0
    params = SamplingParams(tokens_to_generate=30, temperature=50.0, stop_at_eod=False)
    for result in generate(model, TOKENIZER, PROMPTS, params):
        assert max(result.tokens) < TOKENIZER.vocab_size


def test_log_probs_are_those_of_the_full_pass():
    model = _model()
    params = SamplingParams(tokens_to_generate=9, log_probs=True, stop_at_eod=False)
    for result in generate(model, TOKENIZER, PROMPTS, params):
        ids = torch.tensor([result.prompt_tokens + result.tokens])
        logits = model.eval()(ids)[0, :-1, : TOKENIZER.vocab_size]
        expected = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        found = torch.tensor(result.prompt_log_probs + result.log_probs, dtype=torch.float64)
        expect_close(found, expected, bound=1e-10)


def test_scoring_only():
    params = SamplingParams(tokens_to_generate=0, log_probs=True)
    (result,) = generate(_model(), TOKENIZER, ["score me"], params)
    assert (len(result.prompt_log_probs), result.tokens, result.log_probs) == (7, [], [])


def _always(model, token):
    """Make the model continue with one token whatever comes before."""
    with torch.no_grad():
        model.decoder.final_layernorm.weight.zero_()
        model.decoder.final_layernorm.bias.fill_(1.0)
        model.output_layer.weight.zero_()
        model.output_layer.weight[token] = 1.0


def test_eod_ends_a_text_and_is_not_part_of_it():
    model = _model(untie_embeddings_and_output_weights=True)
    _always(model, TOKENIZER.eod)
    for result in generate(model, TOKENIZER, PROMPTS, SamplingParams(top_k=1)):
        assert (result.finish_reason, result.tokens, result.text) == ("eod", [], "")


def test_stop_text_and_stream():
    model = _model(untie_embeddings_and_output_weights=True)
    _always(model, ord("x"))
    pieces = {}
    params = SamplingParams(top_k=1, stop=("yy", "xxxx"))
    results = Engine(model, TOKENIZER).generate(
        ["p", "qq"],
        params,
        on_text=lambda index, piece: pieces.setdefault(index, []).append(piece),
    )
    assert [(r.finish_reason, r.text, len(r.tokens)) for r in results] == [("stop", "", 4)] * 2
    assert pieces == {}


def test_rows_that_end_early_leave_the_others_alone():
    model = _model()
    full = generate(model, TOKENIZER, PROMPTS, GREEDY)
    first_bytes = {result.text[:1] for result in full[:4] if result.text}
    params = SamplingParams(
        tokens_to_generate=20, top_k=1, stop_at_eod=False, stop=tuple(sorted(first_bytes))
    )
    for result, whole in zip(generate(model, TOKENIZER, PROMPTS, params), full, strict=True):
        assert whole.tokens[: len(result.tokens)] == result.tokens
        cut = min((whole.text.find(s) for s in params.stop if s in whole.text), default=None)
        assert result.text == (whole.text if cut is None else whole.text[:cut])


def test_stream_pieces_join_to_the_text():
    pieces = [""] * len(PROMPTS)

    def collect(index, piece):
        pieces[index] += piece

    model = _model()
    results = Engine(model, TOKENIZER).generate(PROMPTS, DRAWN, on_text=collect)
    assert pieces == [result.text for result in results]


def test_training_mode_is_restored_and_dropout_not_applied():
    model = _model(hidden_dropout=0.5, attention_dropout=0.5).train()
    first = generate(model, TOKENIZER, PROMPTS, GREEDY)
    assert model.training
    assert first == generate(model.eval(), TOKENIZER, PROMPTS, GREEDY)


def test_limits():
    model = _model()
    with pytest.raises(UsageError, match="prompt 2: 50 tokens and 20 to generate are 70"):
        generate(model, TOKENIZER, ["a", "b" * 50], GREEDY)
    with pytest.raises(UsageError, match="has 30 positions"):
        Engine(_model("rotary"), TOKENIZER, max_length=30).generate(["a" * 20], GREEDY)
    config = ModelConfig(**SETTINGS)
    with pytest.raises(UsageError, match="the model only 128"):
        Engine(GPTModel(config, padded_vocab_size=128), TOKENIZER)
    assert generate(model, TOKENIZER, [], GREEDY) == []


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_hugging_face(kind):
    torch.manual_seed(3)
    common = {"vocab_size": 257, "bos_token_id": None, "eos_token_id": None}
    common |= {"initializer_range": 0.3}
    if kind == "learned":
        sizes = {"n_positions": 64, "n_embd": 48, "n_layer": 2, "n_head": 4}
        hf = transformers.GPT2LMHeadModel(transformers.GPT2Config(**common, **sizes))
        mapping, changes = from_gpt2, {}
    else:
        sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 80, "rms_norm_eps": 1e-5}
        sizes |= {"tie_word_embeddings": True}
        hf = transformers.LlamaForCausalLM(transformers.LlamaConfig(**common, **sizes))
        mapping, changes = from_llama, {"ffn_hidden_size": 80, "add_bias_linear": False}
    hf = hf.double().eval()
    ours = GPTModel(
        ModelConfig(**SETTINGS | KINDS[kind] | changes), padded_vocab_size=257, dtype=torch.float64
    )
    ours.load_state_dict(mapping(dict(hf.named_parameters()), ours.spec))
    results = generate(ours, TOKENIZER, PROMPTS, GREEDY)
    for result in results:
        ids = torch.tensor([result.prompt_tokens])
        expected = hf.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert result.tokens == expected[0, ids.shape[1] :].tolist()
