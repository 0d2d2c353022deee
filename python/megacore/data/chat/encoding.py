"""Conversations as token ids, each with whether it is learned.

What is learned is what a model would have to generate: an answer with the token that ends it, not
what the template puts around. A template that marks it (`{% generation %}`) is taken at its word.
Otherwise an answer is what the text of the conversation up to it has more than the text before it
with the prompt for an answer; white space behind the token that ends the turn belongs to the
template. A template that changes earlier turns when later ones come (it drops reasoning, or moves
the system message) has no such places in one text: then every answer becomes a text of its own,
which ends with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from megacore.data.chat.records import ASSISTANT, Completion, Conversation, Record
from megacore.data.chat.template import ChatTemplate, Span, TemplateError
from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megacore.errors import DataError

_BATCH = 256


@dataclass(frozen=True)
class Text:
    """A text to learn from.

    Attributes:
        text: The text.
        spans: First character of each learned part and the one behind its last.
        is_plain: It has no template: the tokenizer adds its own special tokens in front, and the
            end-of-sequence token, which is learned, behind.
    """

    text: str
    spans: tuple[Span, ...]
    is_plain: bool = False


@dataclass(frozen=True)
class Encoded:
    """A text as tokens.

    Attributes:
        ids: int32 [n].
        learned: uint8 [n], 1 where the token is to be predicted.
    """

    ids: NDArray[np.int32]
    learned: NDArray[np.uint8]


class Encoder:
    """Renders and tokenizes.

    Args:
        template: Renders conversations.
        tokenizer: Its tokenizer.
    """

    def __init__(self, template: ChatTemplate, tokenizer: HuggingFaceTokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._ends = tuple(tokenizer.added_tokens)

    def encode(
        self, records: Iterable[tuple[int, Record]], source: str
    ) -> Iterator[tuple[int, Encoded]]:
        """The texts of all records, one after the other, each with the line that it is from.

        Args:
            records: Line and record.
            source: The file, for messages.

        Raises:
            DataError: A record cannot be rendered; the message says where it is.
        """
        texts = (
            (line, text)
            for line, record in records
            for text in self.texts(record, f"{source}:{line}")
        )
        while batch := list(islice(texts, _BATCH)):
            lines, ready = zip(*batch, strict=True)
            yield from zip(lines, self._tokenize(ready), strict=True)

    def texts(self, record: Record, where: str) -> list[Text]:
        """The texts to learn from of one record.

        Args:
            record: A record.
            where: Where it is from, for messages.

        Raises:
            DataError: It cannot be rendered.
        """
        if isinstance(record, Completion):
            start = len(record.prompt)
            text = record.prompt + record.completion
            return [Text(text, ((start, len(text)),), is_plain=True)]
        try:
            if self._template.marks_generation:
                return [self._marked(record)]
            return self._compared(record)
        except TemplateError as error:
            raise DataError(f"{where}: {error}") from error

    def _marked(self, conversation: Conversation) -> Text:
        rendered = self._template.render(conversation.messages, tools=conversation.tools)
        spans = rendered.spans or ()
        answers = [
            learned
            for message, learned in zip(conversation.messages, conversation.trained, strict=True)
            if message["role"] == ASSISTANT
        ]
        if all(answers):
            return Text(rendered.text, spans)
        if len(spans) != len(answers):
            raise TemplateError(
                f"the template marks {len(spans)} generated parts for {len(answers)} answers, so "
                "that those of weight 0 cannot be told apart"
            )
        kept = tuple(span for span, learned in zip(spans, answers, strict=True) if learned)
        return Text(rendered.text, kept)

    def _compared(self, conversation: Conversation) -> list[Text]:
        turns = []
        for index, learned in enumerate(conversation.trained):
            if learned:
                turns.append(self._turn(conversation, index))
        whole = self._template.render(conversation.messages, tools=conversation.tools).text
        if all(whole.startswith(turn.text) for turn in turns):
            return [Text(whole, tuple(span for turn in turns for span in turn.spans))]
        return turns

    def _turn(self, conversation: Conversation, index: int) -> Text:
        """The conversation up to an answer, which is learned."""
        messages, tools = conversation.messages, conversation.tools
        before = self._template.render(messages[:index], tools=tools, add_generation_prompt=True)
        text = self._template.render(messages[: index + 1], tools=tools).text
        if not text.startswith(before.text):
            raise TemplateError(
                f"message {index}: the text with this answer does not begin with the text that "
                "asks for it, so that the template does not say what is to be learned; mark it "
                "with {% generation %} (--chat-template)"
            )
        start = len(before.text)
        answer = text[start:]
        trimmed = answer.rstrip()
        end = start + len(trimmed if trimmed.endswith(self._ends) else answer)
        return Text(text, ((start, end),))

    def _tokenize(self, batch: Sequence[Text]) -> Iterator[Encoded]:
        encoded: dict[int, Encoded] = {}
        for is_plain in (False, True):
            chosen = [i for i, text in enumerate(batch) if text.is_plain == is_plain]
            found = self._tokenizer.encode_with_offsets(
                [batch[i].text for i in chosen], special_tokens=is_plain
            )
            for i, (ids, offsets) in zip(chosen, found, strict=True):
                encoded[i] = self._encoded(batch[i], ids, offsets)
        for i in range(len(batch)):
            yield encoded[i]

    def _encoded(self, text: Text, ids: Sequence[int], offsets: Sequence[Span]) -> Encoded:
        tokens = np.array(ids, dtype=np.int32)
        places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        learned = np.zeros(len(tokens), dtype=np.uint8)
        for first, last in text.spans:
            # Every token that any character of the part went into.
            learned[(places[:, 0] < last) & (places[:, 1] > first)] = 1
        if text.is_plain:
            end = self._tokenizer.eos
            if len(tokens) and tokens[-1] == end:
                tokens, learned = tokens[:-1], learned[:-1]
            tokens = np.append(tokens, np.int32(end))
            learned = np.append(learned, np.uint8(1))
        return Encoded(tokens, learned)
