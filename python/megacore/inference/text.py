"""Tokens to text as they arrive: whole characters only, nothing that may still be a stop text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"
# Tokens of the prompt that are decoded along, because what a token means as text (a leading
# space, the rest of a character) can depend on the ones before it.
_CONTEXT = 6


class TextStream:
    """The text of one continuation.

    Args:
        detokenize: Text of a sequence of ids.
        prompt_tokens: Ids before the continuation.
        stop: Texts that end the continuation.
    """

    def __init__(
        self,
        detokenize: Callable[[Sequence[int]], str],
        prompt_tokens: Sequence[int],
        stop: Sequence[str] = (),
    ) -> None:
        self._detokenize = detokenize
        self._tokens = list(prompt_tokens[-_CONTEXT:])
        self._stop = tuple(stop)
        # Text is decoded from `_start` on; tokens before `_done` are already text.
        self._start = 0
        self._done = len(self._tokens)
        self._text = ""
        self._released = 0
        self.stopped = False

    @property
    def text(self) -> str:
        """The continuation so far; it ends before a stop text."""
        return self._text

    def add(self, token: int) -> str:
        """Append a token; returns the text that is certain now."""
        self._tokens.append(token)
        return self._extend(final=False)

    def finish(self) -> str:
        """No more tokens; returns the text that was held back."""
        return self._extend(final=True)

    def _extend(self, *, final: bool) -> str:
        known = self._detokenize(self._tokens[self._start : self._done])
        whole = self._detokenize(self._tokens[self._start :])
        # A trailing replacement character is usually the first bytes of one that is not complete.
        certain = final or not whole.endswith(_REPLACEMENT)
        if certain and not self.stopped and len(whole) > len(known):
            self._text += whole[len(known) :]
            self._start, self._done = self._done, len(self._tokens)
            self._cut_at_stop()
        end = len(self._text)
        if not final and not self.stopped:
            end -= self._possible_stop()
        piece = self._text[self._released : end]
        self._released = max(end, self._released)
        return piece

    def _cut_at_stop(self) -> None:
        found = [self._text.find(stop) for stop in self._stop]
        places = [place for place in found if place >= 0]
        if places:
            self._text = self._text[: min(places)]
            self.stopped = True

    def _possible_stop(self) -> int:
        """Length of the longest end of the text that begins a stop text."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
