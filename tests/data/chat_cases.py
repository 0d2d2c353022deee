"""A small tokenizer, and chat templates in the styles of known models, written for the tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIALS = (
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start|>",
    "<|header_end|>",
    "<|eot|>",
    "[INST]",
    "[/INST]",
    "<turn>",
    "<end_of_turn>",
)
TEXT = """What is the capital of France? The capital of France is Paris. How many legs has a spider?
A spider has eight legs. Answer in one word. You are a helpful assistant. Thank you, goodbye!"""

# Each with a mark around what is generated; without the marks it is the form that models ship with.
TEMPLATES = {
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "llama3": (
        "{{- bos_token }}\n"
        "{%- if messages[0]['role'] == 'system' %}\n"
        "    {%- set system_message = messages[0]['content']|trim %}\n"
        "    {%- set messages = messages[1:] %}\n"
        "{%- else %}\n    {%- set system_message = '' %}\n{%- endif %}\n"
        "{{- '<|start|>system<|header_end|>\\n\\n' + system_message + '<|eot|>' }}\n"
        "{%- for message in messages %}\n"
        "    {{- '<|start|>' + message['role'] + '<|header_end|>\\n\\n' }}\n"
        "    {%- if message['role'] == 'assistant' %}\n"
        "        {%- generation %}{{- message['content'] | trim + '<|eot|>' }}"
        "{%- endgeneration %}\n"
        "    {%- else %}\n        {{- message['content'] | trim + '<|eot|>' }}\n    {%- endif %}\n"
        "{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n"
        "    {{- '<|start|>assistant<|header_end|>\\n\\n' }}\n{%- endif %}\n"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}"
        "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}"
        "{% endif %}{% endfor %}"
    ),
    "gemma": (
        "{{ bos_token }}{% for message in messages %}\n"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\n"
        "{{ raise_exception('Roles must alternate user/assistant/user/assistant/...') }}\n"
        "{% endif %}\n"
        "{% if message['role'] == 'assistant' %}{% set role = 'model' %}\n"
        "{% else %}{% set role = message['role'] %}{% endif %}\n"
        "{{ '<turn>' + role + '\\n' }}"
        "{% if role == 'model' %}"
        "{% generation %}{{ message['content'] | trim + '<end_of_turn>' }}{% endgeneration %}"
        "{% else %}{{ message['content'] | trim + '<end_of_turn>' }}{% endif %}{{ '\\n' }}"
        "{% endfor %}\n"
        "{% if add_generation_prompt %}{{ '<turn>model\\n' }}{% endif %}"
    ),
    # Drops what was thought in earlier answers, as reasoning models do.
    "thinking": (
        "{%- for message in messages %}"
        "{{- '<|im_start|>' + message['role'] + '\\n' }}"
        "{%- set content = message['content'] %}"
        "{%- if message['role'] == 'assistant' and not loop.last %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
        "{{- content + '<|im_end|>\\n' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
    ),
}


def unmarked(template: str) -> str:
    """The template without marks, with the same blanks trimmed."""
    for word in ("{% generation %}", "{% endgeneration %}"):
        template = template.replace(word, "")
    return template.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")


def write_tokenizer(directory: Path, template: str | None = None) -> Path:
    """A byte-level tokenizer of a few hundred entries, saved as `save_pretrained` does."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + len(SPECIALS) + 60,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT.splitlines(), trainer)
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIALS])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
    }
    if template is not None:
        settings["chat_template"] = template
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return directory


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def chat(*contents: str, system: str | None = None) -> list[dict[str, str]]:
    """Messages of user and assistant in turn."""
    roles = ("user", "assistant")
    turns = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    return [*([{"role": "system", "content": system}] if system else []), *turns]
