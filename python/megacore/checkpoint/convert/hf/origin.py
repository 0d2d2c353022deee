"""What a Hugging Face directory says that is not about the model, carried to another directory.

It travels as one text among the arguments of the model, which all formats keep that have any; what
then is missing is looked for in the tokenizer's files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from megacore.checkpoint.convert.model_stream import ModelDescription

ARGUMENT = "hugging_face_origin"

# Values of `config.json` that are carried.
_CARRIED = ("unk_token_id", "sep_token_id", "tokenizer_class")
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a model came from.

    Attributes:
        family: `model_type`, or None.
        config: Values of `config.json` to be written again.
        generation: Content of `generation_config.json`, or None.
    """

    family: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] | None = None

    @classmethod
    def of_config(
        cls, family: str, values: Mapping[str, Any], generation: Mapping[str, Any] | None
    ) -> Origin:
        """From the files of a directory."""
        config = {name: values[name] for name in (*_CARRIED, *_TOKENS) if name in values}
        return cls(family=family, config=config, generation=generation)

    @classmethod
    def of_description(cls, description: ModelDescription) -> Origin:
        """That of a model, with the tokens of its tokenizer where nothing else is known.

        All kinds of special tokens are there: one that is not would get the default of its class,
        which may not even be in the vocabulary.
        """
        text = description.arguments.get(ARGUMENT)
        found = json.loads(text) if isinstance(text, str) else {}
        tokens = {**dict.fromkeys(_TOKENS), **_tokens(description.tokenizer_files)}
        config = {**tokens, **found.get("config", {})}
        return cls(family=found.get("family"), config=config, generation=found.get("generation"))

    def text(self) -> str:
        """As an argument of a model."""
        return json.dumps(asdict(self))


def _tokens(files: Mapping[str, Path | bytes]) -> dict[str, int]:
    """Ids of the special tokens of a tokenizer with tokenizer_config.json and tokenizer.json."""
    settings, vocabulary = (
        _object(files.get(name)) for name in ("tokenizer_config.json", "tokenizer.json")
    )
    added = vocabulary.get("added_tokens")
    ids = {
        entry["content"]: entry["id"]
        for entry in (added if isinstance(added, list) else [])
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int)
    }
    found: dict[str, int] = {}
    for name in _TOKENS:
        token = settings.get(name.removesuffix("_id"))
        content = token.get("content") if isinstance(token, Mapping) else token
        if isinstance(content, str) and content in ids:
            found[name] = ids[content]
    return found


def _object(file: Path | bytes | None) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none, as these files are a help only."""
    try:
        text = file.read_bytes() if isinstance(file, Path) else file or b"{}"
        found = json.loads(text)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
