"""Chat templates: conversations rendered to text, with the places of the answers.

A template is a Jinja program that came with a tokenizer, so it is run in Jinja's sandbox, on plain
values only. The environment is the one that such templates are written for (that of the
transformers library): trimmed blocks, loop controls, `raise_exception`, `strftime_now`, a `tojson`
that does not escape, and `{% generation %}` around what the model is to generate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from megacore.data.tokenizers.files import read_json, read_text
from megacore.errors import DataError

TEMPLATE_FILE = "chat_template.jinja"
SETTINGS_FILE = "tokenizer_config.json"
_GENERATION = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
# Around what is generated, until the text is complete: from a private range of Unicode.
_OPEN, _CLOSE = "\U000f4a1e", "\U000f4a1f"

Message = Mapping[str, Any]
Span = tuple[int, int]


class TemplateError(Exception):
    """A conversation cannot be rendered; the message says why, the caller which one it is."""


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: marks both ends."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own way of declaring it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        block = nodes.CallBlock(self.call_method("_marked"), [], [], body)
        return block.set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_OPEN}{caller()}{_CLOSE}"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: The text.
        spans: First character of each generated part and the one behind its last; None for a
            template that does not mark them.
    """

    text: str
    spans: tuple[Span, ...] | None


class ChatTemplate:
    """A template that renders conversations.

    Args:
        source: Its text.
        where: Where it is from, for messages.
        tokens: bos_token, eos_token and so on, which templates refer to.

    Attributes:
        source: Its text.
        marks_generation: Whether it says what is generated.

    Raises:
        DataError: It is not a template.
    """

    def __init__(self, source: str, where: str, tokens: Mapping[str, str]) -> None:
        self.source = source
        self._where = where
        self._tokens = dict(tokens)
        self.marks_generation = _GENERATION.search(source) is not None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise DataError(f"{where}: the chat template cannot be read: {error}") from error

    @property
    def identity(self) -> dict[str, Any]:
        """What the rendered text depends on."""
        return {"source": self.source, "tokens": self._tokens}

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = False,
    ) -> Rendered:
        """The text of a conversation.

        Args:
            messages: JSON objects with a role and, mostly, a content.
            tools: Descriptions of tools, for templates that know them.
            add_generation_prompt: End with what comes before an answer.

        Raises:
            TemplateError: The template refuses the conversation or fails.
        """
        plain = [{key: value for key, value in m.items() if value is not None} for m in messages]
        try:
            text = self._template.render(
                messages=plain,
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise TemplateError(f"{self._where}: {error}") from error
        if not self.marks_generation:
            return Rendered(text, None)
        return _unmarked(text, self._where)


def _unmarked(text: str, where: str) -> Rendered:
    pieces, spans, length, opened = [], [], 0, None
    for piece in re.split(f"([{_OPEN}{_CLOSE}])", text):
        if piece == _OPEN and opened is None:
            opened = length
        elif piece == _CLOSE and opened is not None:
            spans.append((opened, length))
            opened = None
        elif piece in (_OPEN, _CLOSE):
            raise TemplateError(f"{where}: generated parts lie inside of each other")
        else:
            pieces.append(piece)
            length += len(piece)
    return Rendered("".join(pieces), tuple(spans))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def load_template(tokenizer: Path, override: Path | None = None) -> ChatTemplate:
    """The template of a tokenizer, or another one in its place.

    Args:
        tokenizer: Directory with tokenizer_config.json, and perhaps chat_template.jinja, which
            then wins; of several named templates the one called "default" is taken.
        override: Jinja file to use instead.

    Raises:
        DataError: There is none, or it is not a template.
    """
    settings: Any = {}
    path = tokenizer / SETTINGS_FILE
    if path.is_file():
        settings = read_json(str(path), "tokenizer settings")
        if not isinstance(settings, dict):
            raise DataError(f"{path}: expected a JSON object, found {type(settings).__name__}")
    tokens = _special_tokens(settings)
    for file in (override, tokenizer / TEMPLATE_FILE):
        if file is not None and (file is override or file.is_file()):
            return ChatTemplate(read_text(str(file), "chat template"), str(file), tokens)
    source = settings.get("chat_template")
    if isinstance(source, list):
        named = {entry.get("name"): entry.get("template") for entry in source if entry}
        source = named.get("default")
    if not isinstance(source, str):
        raise DataError(
            f"{tokenizer}: the tokenizer has no chat template (neither {TEMPLATE_FILE} nor "
            f"chat_template in {SETTINGS_FILE}); give one with --chat-template FILE"
        )
    return ChatTemplate(source, str(path), tokens)


def _special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    tokens = {}
    for name, value in settings.items():
        text = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(text, str):
            tokens[name] = text
    return tokens
