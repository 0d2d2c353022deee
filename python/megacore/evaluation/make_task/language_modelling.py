"""WIKITEXT103 and LAMBADA: text as WikiText has it, and passages whose last word can be known."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from random import Random

from megacore.evaluation.make_task.corpus import Corpus, Passage, words

_WIKI_PARTS = {"wiki.train.tokens": "train", "wiki.valid.tokens": "dev", "wiki.test.tokens": "test"}
_LAMBADA_PARTS = {"lambada_development.jsonl": "dev", "lambada_test.jsonl": "test"}
_PASSAGES_PER_ARTICLE = 8
_MARK = re.compile(r"([.,;:!?()\"])")
_INNER = ((re.compile(r"(?<=\w)-(?=\w)"), " @-@ "), (re.compile(r"(?<=\d),(?=\d)"), " @,@ "),
          (re.compile(r"(?<=\d)\.(?=\d)"), " @.@ "))  # fmt: skip
_LAST_WORD = re.compile(r"\b([A-Za-z]{4,})[.!?]$")


def wikitext(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Three files of articles with headings, tokenised as WikiText is.

    Args:
        corpus: Where the text comes from.
        random: Not used: the order of the text stays.
        examples: Most passages of a file.

    Yields:
        Name and content of each file.
    """
    del random
    for name, part in _WIKI_PARTS.items():
        yield name, "".join(_article_lines(corpus.part(part).passages[:examples]))


def _article_lines(passages: Sequence[Passage]) -> Iterator[str]:
    for number, passage in enumerate(passages):
        if number % _PASSAGES_PER_ARTICLE == 0:
            title = " ".join(words(passage.sentences[0])[:3]).title()
            yield f" \n = {title} = \n \n"
        yield f" {tokenised(passage.text)} \n"


def tokenised(text: str) -> str:
    """Blanks around marks, and WikiText's signs for separators inside numbers and words."""
    for pattern, sign in _INNER:
        text = pattern.sub(sign, text)
    # What stands inside a sign must not get blanks.
    pieces = re.split(r"( @[-,.]@ )", text)
    spaced = [p if i % 2 else _MARK.sub(r" \1 ", p) for i, p in enumerate(pieces)]
    return re.sub(r" +", " ", "".join(spaced)).replace("'s ", " 's ").strip()


def lambada(corpus: Corpus, random: Random, examples: int) -> Iterator[tuple[str, str]]:
    """Two files of passages; the last word of each, four letters or more, is in it before.

    Args:
        corpus: Where the text comes from.
        random: Chooses the passages.
        examples: Most passages of a file.

    Yields:
        Name and content of each file.
    """
    for name, part in _LAMBADA_PARTS.items():
        found = [text for p in corpus.part(part).passages for text in _endings(p)]
        chosen = random.sample(found, min(examples, len(found)))
        yield name, "".join(json.dumps({"text": text}) + "\n" for text in chosen)


def _endings(passage: Passage) -> Iterator[str]:
    """Beginnings of a passage that end with a word that occurs earlier in them."""
    for count in range(2, len(passage.sentences) + 1):
        last = _LAST_WORD.search(passage.sentences[count - 1])
        if last is None:
            continue
        text = " ".join(passage.sentences[:count])[:-1]
        if re.search(rf"\b{last[1]}\b", text[: -len(last[1])]):
            yield text
