"""Text as tokens arrive: whole characters, stop texts, and always the same total."""

import pytest
from byte_tokenizer import ByteTokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from megacore.inference.text import TextStream

TOKENIZER = ByteTokenizer()


def _feed(text, prompt="", stop=()):
    stream = TextStream(TOKENIZER.detokenize, TOKENIZER.tokenize(prompt), stop)
    pieces = []
    for token in TOKENIZER.tokenize(text):
        pieces.append(stream.add(token))
        if stream.stopped:
            break
    pieces.append(stream.finish())
    return pieces, stream


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=12), st.text(max_size=5))
def test_pieces_join_to_the_text(text, prompt):
    pieces, stream = _feed(text, prompt)
    assert "".join(pieces) == stream.text == text
    assert all(piece in ("", *text) for piece in pieces[:-1])


def test_a_character_appears_when_it_is_complete():
    pieces, _ = _feed("a\u20acb")
    assert pieces == ["a", "", "", "\u20ac", "b", ""]


def test_bytes_that_never_become_a_character_come_at_the_end():
    stream = TextStream(TOKENIZER.detokenize, [65])
    assert stream.add(0xE2) == ""
    assert stream.add(0x82) == ""
    assert stream.finish() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one two END three", ("END",), "one two "),
        ("aab aac", ("aac",), "aab "),
        ("xyxyz", ("xyz",), "xy"),
        ("xyxy", ("xyz",), "xyxy"),
        ("a\nb", ("\n\n", "\n"), "a"),
        ("", ("x",), ""),
        ("\u20ac!\u20ac", ("!\u20ac",), "\u20ac"),
    ],
)
def test_stop_texts(text, stop, expected):
    pieces, stream = _feed(text, stop=stop)
    assert "".join(pieces) == stream.text == expected
    assert stream.stopped == (expected != text)
