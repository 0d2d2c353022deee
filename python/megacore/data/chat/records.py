"""Conversations in JSON lines, in the forms that are in use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megacore.errors import DataError

# ShareGPT's names of roles.
_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
}
ASSISTANT = "assistant"


@dataclass(frozen=True)
class Conversation:
    """One conversation.

    Attributes:
        messages: JSON objects with a role each.
        trained: For each message whether it is learned: answers are, unless the data say otherwise.
        tools: Descriptions of tools, or None.
    """

    messages: tuple[Mapping[str, Any], ...]
    trained: tuple[bool, ...]
    tools: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Completion:
    """A text and how it goes on, without a template.

    Attributes:
        prompt: What is given.
        completion: What is learned.
    """

    prompt: str
    completion: str


Record = Conversation | Completion


def read_records(path: Path) -> Iterator[tuple[int, Record]]:
    """Line number and record of every line that is not blank.

    A line is a JSON object with `messages` (role and content each), or `conversations` (ShareGPT:
    from and value each), or `prompt` and `completion` (both text, or both messages).

    Raises:
        DataError: The file cannot be read, or a line is something else; the message names both.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, parse_record(line, f"{path}:{number}")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def parse_record(line: bytes, where: str) -> Record:
    """The record of one line.

    Args:
        line: JSON text.
        where: File and line, for messages.

    Raises:
        DataError: It is none of the known forms.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected a JSON object, found {type(value).__name__}")
    tools = value.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise DataError(f"{where}: tools: expected a list, found {type(tools).__name__}")
    kept_tools = None if tools is None else tuple(tools)
    if "messages" in value:
        messages = _messages(value["messages"], f"{where}: messages")
        return _conversation(messages, 0, kept_tools, where)
    if "conversations" in value:
        messages = _share_gpt(value["conversations"], f"{where}: conversations")
        if isinstance(value.get("system"), str):
            messages.insert(0, {"role": "system", "content": value["system"]})
        return _conversation(messages, 0, kept_tools, where)
    if "prompt" in value and "completion" in value:
        prompt, completion = value["prompt"], value["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return Completion(prompt, completion)
        given = _messages(prompt, f"{where}: prompt")
        answer = _messages(completion, f"{where}: completion")
        return _conversation([*given, *answer], len(given), kept_tools, where)
    keys = ", ".join(sorted(value)) or "nothing"
    raise DataError(
        f"{where}: expected messages, conversations, or prompt and completion; found {keys}"
    )


def _conversation(
    messages: list[dict[str, Any]], first: int, tools: tuple[Any, ...] | None, where: str
) -> Conversation:
    """A conversation of which messages from `first` on can be learned."""
    trained = tuple(
        index >= first and message["role"] == ASSISTANT and message.get("weight", 1) != 0
        for index, message in enumerate(messages)
    )
    if not any(trained):
        raise DataError(f"{where}: there is no answer (a message of the role assistant) to learn")
    plain = tuple({k: v for k, v in m.items() if k != "weight"} for m in messages)
    return Conversation(plain, trained, tools)


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of messages, found {_shown(value)}")
    for index, message in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(f"{place}: expected an object with a role, found {_shown(message)}")
        content = message.get("content")
        without = content is None and message.get("tool_calls")
        if not (isinstance(content, str) or without or _is_text_parts(content)):
            raise DataError(f"{place}: content: expected text, found {_shown(content)}")
        if message.get("weight", 1) not in (0, 1):
            raise DataError(f"{place}: weight: expected 0 or 1, found {message['weight']!r}")
    return list(value)


def _is_text_parts(content: Any) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _share_gpt(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of turns, found {_shown(value)}")
    messages = []
    for index, turn in enumerate(value):
        place = f"{where}[{index}]"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str):
            raise DataError(f"{place}: expected an object with from and value: {_shown(turn)}")
        role = _ROLES.get(str(turn.get("from")))
        if role is None:
            known = ", ".join(_ROLES)
            raise DataError(f"{place}: from: expected one of {known}, found {turn.get('from')!r}")
        messages.append({"role": role, "content": turn["value"], "weight": turn.get("weight", 1)})
    return messages


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 60 else f"{text[:57]}..."
