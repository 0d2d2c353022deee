"""Rendered conversations and what is learned of them: against transformers, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_cases import TEMPLATES, chat, unmarked, write_tokenizer

from megacore.data.chat.encoding import Encoder
from megacore.data.chat.records import Conversation, parse_record
from megacore.data.chat.template import ChatTemplate, TemplateError, load_template
from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megacore.errors import DataError

MARKED = ("chatml", "llama3", "mistral", "gemma")
CONVERSATIONS = {
    "one": chat("What is the capital of France?", "Paris"),
    "many": chat(
        "  How many legs? \n", " Eight \u00e9\u4e2d\U0001f600 \n", "Thanks", "Goodbye!", "So?", "x"
    ),
    "ends with a question": chat("Hi", "Hello there", "And now?"),
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return HuggingFaceTokenizer(str(write_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


def encoder(tokenizer: HuggingFaceTokenizer, source: str) -> Encoder:
    tokens = {"bos_token": "<s>", "eos_token": "</s>"}
    return Encoder(ChatTemplate(source, "template", tokens), tokenizer)


def conversation(messages: list[dict[str, Any]], **kinds: Any) -> Conversation:
    learned = tuple(message["role"] == "assistant" for message in messages)
    return Conversation(tuple(messages), learned, **kinds)


def encoded(one: Encoder, *found: Conversation) -> list[tuple[list[int], list[int]]]:
    return [
        (text.ids.tolist(), text.learned.tolist())
        for _, text in one.encode(enumerate(found, 1), "chat.jsonl")
    ]


@pytest.mark.parametrize("name", MARKED)
@pytest.mark.parametrize("case", CONVERSATIONS)
def test_ids_and_learned_tokens_are_those_of_transformers(
    tokenizer: HuggingFaceTokenizer, name: str, case: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(str(tokenizer.directory))
    messages = CONVERSATIONS[case]
    wanted = theirs.apply_chat_template(
        messages,
        chat_template=TEMPLATES[name],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    expected = (list(wanted["input_ids"]), list(wanted["assistant_masks"]))
    assert any(expected[1])
    assert encoded(encoder(tokenizer, TEMPLATES[name]), conversation(messages)) == [expected]
    # What the template does not say is found by comparing texts.
    plain = encoder(tokenizer, unmarked(TEMPLATES[name]))
    assert encoded(plain, conversation(messages)) == [expected]


@pytest.mark.parametrize("name", MARKED)
def test_prompt_for_an_answer_is_that_of_transformers(
    tokenizer: HuggingFaceTokenizer, name: str
) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast.from_pretrained(str(tokenizer.directory))
    messages = CONVERSATIONS["ends with a question"]
    for source in (TEMPLATES[name], unmarked(TEMPLATES[name])):
        wanted = theirs.apply_chat_template(
            messages, chat_template=source, tokenize=False, add_generation_prompt=True
        )
        found = ChatTemplate(source, "t", {"bos_token": "<s>", "eos_token": "</s>"})
        assert found.render(messages, add_generation_prompt=True).text == wanted


def test_learned_text_is_the_answer_and_the_end_of_its_turn(
    tokenizer: HuggingFaceTokenizer,
) -> None:
    one = encoder(tokenizer, unmarked(TEMPLATES["chatml"]))
    (text,) = one.texts(conversation(chat("Hi", "Hello", "Bye", "See you")), "here")
    assert [text.text[first:last] for first, last in text.spans] == [
        "Hello<|im_end|>",
        "See you<|im_end|>",
    ]


def test_template_that_changes_earlier_turns_gives_a_text_for_each_answer(
    tokenizer: HuggingFaceTokenizer,
) -> None:
    one = encoder(tokenizer, TEMPLATES["thinking"])
    first, second = "<think>a</think>\nOne", "<think>b</think>\nTwo"
    texts = one.texts(conversation(chat("1?", first, "2?", second)), "here")
    learned = [[t.text[a:b] for a, b in t.spans] for t in texts]
    assert learned == [[f"{first}<|im_end|>"], [f"{second}<|im_end|>"]]
    assert "<think>a" not in texts[1].text
    assert len(encoded(one, conversation(chat("1?", first, "2?", second)))) == 2


def test_answers_of_weight_zero_are_not_learned(tokenizer: HuggingFaceTokenizer) -> None:
    line = (
        b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", '
        b'"weight": 0}, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}'
    )
    record = parse_record(line, "here")
    for source in (TEMPLATES["gemma"], unmarked(TEMPLATES["gemma"])):
        (text,) = encoder(tokenizer, source).texts(record, "here")
        assert [text.text[a:b] for a, b in text.spans] == ["d<end_of_turn>"]


def test_prompt_and_completion_are_one_text_with_an_end(tokenizer: HuggingFaceTokenizer) -> None:
    record = parse_record(b'{"prompt": "A spider has", "completion": " eight legs"}', "here")
    one = encoder(tokenizer, TEMPLATES["chatml"])
    ((ids, learned),) = encoded(one, record)  # type: ignore[arg-type]
    assert ids[-1] == tokenizer.eos
    assert tokenizer.detokenize(ids[:-1]) == "A spider has eight legs"
    assert tokenizer.detokenize([i for i, one in zip(ids, learned, strict=True) if one]) == (
        " eight legs</s>"
    )


def test_order_is_kept_when_forms_are_mixed(tokenizer: HuggingFaceTokenizer) -> None:
    one = encoder(tokenizer, TEMPLATES["chatml"])
    records = [
        parse_record(b'{"prompt": "x", "completion": "%d"}' % i, "here")
        if i % 3
        else conversation(chat("x", str(i)))
        for i in range(600)
    ]
    found = list(one.encode(enumerate(records), "f"))
    assert [line for line, _ in found] == list(range(600))
    for number, (_, text) in enumerate(found):
        answer = text.ids[text.learned.astype(bool)][:-1]
        assert tokenizer.detokenize(answer.tolist()) == str(number)
        assert text.ids.dtype == np.int32


def test_refusal_of_a_template_names_file_and_line(tokenizer: HuggingFaceTokenizer) -> None:
    one = encoder(tokenizer, TEMPLATES["mistral"])
    wrong = conversation(chat("a", "b", system="Be brief."))
    with pytest.raises(DataError, match=r"chat.jsonl:2: template: Only user and assistant"):
        encoded(one, conversation(chat("a", "b")), wrong)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__ }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ messages[0]['content'].missing() }}",
        "{{ 1 / 0 }}",
    ],
)
def test_templates_run_in_a_sandbox(source: str) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate(source, "t", {}).render(chat("a", "b"))


def test_template_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        ChatTemplate("{% if %}", "t", {})
    write_tokenizer(tmp_path)
    with pytest.raises(DataError, match="has no chat template"):
        load_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}file")
    assert load_template(tmp_path).render([]).text == "<s>file"
    other = tmp_path / "other.jinja"
    other.write_text("other")
    assert load_template(tmp_path, other).render([]).text == "other"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"[1]", "expected a JSON object, found list"),
        (b'{"messages": [', "not JSON"),
        (
            b'{"text": "x"}',
            "expected messages, conversations, or prompt and completion; found text",
        ),
        (b'{"messages": []}', "messages: expected a list of messages"),
        (b'{"messages": [{"content": "x"}]}', r"messages\[0\]: expected an object with a role"),
        (
            b'{"messages": [{"role": "user", "content": 3}]}',
            r"messages\[0\]: content: expected text",
        ),
        (b'{"messages": [{"role": "user", "content": "x"}]}', "no answer"),
        (b'{"conversations": [{"from": "martian", "value": "x"}]}', "from: expected one of human"),
        (b'{"messages": [{"role": "assistant", "content": "x", "weight": 2}]}', "weight"),
        (b'{"prompt": "x", "completion": [{"role": "user", "content": "x"}]}', "prompt: expected"),
    ],
)
def test_wrong_lines_are_named(line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_record(line, "data.jsonl:7")
    assert str(caught.value).startswith("data.jsonl:7: ")


def test_forms_of_conversations_are_read_alike() -> None:
    plain = parse_record(
        b'{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}, '
        b'{"role": "assistant", "content": "a"}]}',
        "here",
    )
    share_gpt = parse_record(
        b'{"system": "s", "conversations": [{"from": "human", "value": "u"}, '
        b'{"from": "gpt", "value": "a"}]}',
        "here",
    )
    halves = parse_record(
        b'{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], '
        b'"completion": [{"role": "assistant", "content": "a"}]}',
        "here",
    )
    assert plain == share_gpt == halves
