"""HuggingFaceTokenizer: a directory with tokenizer.json, read without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from megacore.data.tokenizers.base import Tokenizer
from megacore.data.tokenizers.files import read_json, read_text
from megacore.data.tokenizers.sentence_pieces import check_ids
from megacore.errors import DataError

_SPECIALS = ("bos", "eos", "cls", "sep", "mask")


class _Engine(Protocol):
    size: int

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...
    def special(self, name: str) -> int | None: ...
    def added_tokens(self) -> list[str]: ...
    def encode_with_offsets(
        self, texts: Sequence[str], special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]: ...


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer saved by `save_pretrained`; model-specific special tokens are added to a text.

    `tokenizer.json` is run by the `tokenizers` library. A directory without it needs the
    `transformers` package, which then reads the files of its own format.

    Args of the constructor:
        directory: Local directory (a path to a tokenizer.json works too).
    """

    class_name = "_HuggingFaceTokenizer"

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        path = Path(directory)
        if path.is_file():
            path = path.parent
        if not path.is_dir():
            raise DataError(
                f"{directory}: expected a local directory with tokenizer.json; "
                "nothing is downloaded by name"
            )
        self._directory = path
        if (path / "tokenizer.json").is_file():
            self._engine: _Engine = _JsonEngine(path)
        else:
            self._engine = _TransformersEngine(path)

    @property
    def vocab_size(self) -> int:
        """All tokens, added ones included."""
        return self._engine.size

    @property
    def eod(self) -> int:
        """The end-of-sequence token that the directory names."""
        return self.eos

    @property
    def bos(self) -> int:
        """Id of bos_token."""
        return self._special("bos")

    @property
    def eos(self) -> int:
        """Id of eos_token."""
        return self._special("eos")

    @property
    def cls(self) -> int:
        """Id of cls_token."""
        return self._special("cls")

    @property
    def sep(self) -> int:
        """Id of sep_token."""
        return self._special("sep")

    @property
    def mask(self) -> int:
        """Id of mask_token."""
        return self._special("mask")

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text, with the special tokens that this tokenizer adds around it."""
        return self._engine.encode(text)

    def encode_with_offsets(
        self, texts: Sequence[str], *, special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """Ids of several texts, and for each id the characters that it stands for.

        Args:
            texts: The texts.
            special_tokens: Add the special tokens that this tokenizer adds around a text (they
                stand for no characters).

        Raises:
            DataError: The directory has no tokenizer.json.
        """
        return self._engine.encode_with_offsets(texts, special_tokens)

    @property
    def added_tokens(self) -> list[str]:
        """Texts of the tokens that were added to the vocabulary, the special ones among them."""
        return self._engine.added_tokens()

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self._directory

    def detokenize(self, ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included; DataError for an id outside."""
        check_ids(ids, self.vocab_size, self._paths[0])
        return self._engine.decode([int(i) for i in ids])

    def _special(self, name: str) -> int:
        found = self._engine.special(name)
        if found is None:
            raise self._without(f"{name}_token (see tokenizer_config.json)")
        return found


class _JsonEngine:
    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer as Engine

        path = directory / "tokenizer.json"
        try:
            self._engine = Engine.from_str(read_text(str(path), "tokenizer"))
        except DataError:
            raise
        except Exception as error:  # the library raises bare Exception for a wrong file
            raise DataError(
                f"{path}: expected a tokenizer in the tokenizers format: {error}"
            ) from error
        # Length limits in the file are for batches of a model, not for preparing documents.
        self._engine.no_truncation()
        self._engine.no_padding()
        self.size = int(self._engine.get_vocab_size(with_added_tokens=True))
        self._names = _special_names(directory)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._engine.encode(text).ids
        return ids

    def encode_with_offsets(
        self, texts: Sequence[str], special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        found = self._engine.encode_batch(list(texts), add_special_tokens=special_tokens)
        return [(one.ids, one.offsets) for one in found]

    def added_tokens(self) -> list[str]:
        return [token.content for token in self._engine.get_added_tokens_decoder().values()]

    def decode(self, ids: list[int]) -> str:
        return str(self._engine.decode(ids, skip_special_tokens=False))

    def special(self, name: str) -> int | None:
        token = self._names.get(name)
        found = self._engine.token_to_id(token) if token is not None else None
        return None if found is None else int(found)


def _special_names(directory: Path) -> dict[str, str]:
    """bos/eos/... -> token, from the files that save_pretrained writes."""
    names: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        path = directory / file
        if not path.is_file():
            continue
        settings = read_json(str(path), "tokenizer settings")
        if not isinstance(settings, dict):
            raise DataError(f"{path}: expected a JSON object, found {type(settings).__name__}")
        for name in _SPECIALS:
            value: Any = settings.get(f"{name}_token")
            if isinstance(value, dict):
                value = value.get("content")
            if isinstance(value, str):
                names[name] = value
    return names


class _TransformersEngine:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DataError(
                f"{directory}: there is no tokenizer.json; other formats need the transformers "
                "package (pip install transformers)"
            ) from error
        try:
            self._engine: Any = AutoTokenizer.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # whatever the format's reader raises
            raise DataError(
                f"{directory}: there is no tokenizer.json, and transformers cannot read the "
                f"directory: {error}"
            ) from error
        self.size = len(self._engine)

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._engine(text)["input_ids"]
        return ids

    def encode_with_offsets(
        self, texts: Sequence[str], special_tokens: bool
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        raise DataError(
            f"{self._directory}: which characters a token stands for is known only with a "
            "tokenizer.json; save the tokenizer as a fast one (save_pretrained)"
        )

    def added_tokens(self) -> list[str]:
        return list(self._engine.get_added_vocab())

    def decode(self, ids: list[int]) -> str:
        return str(self._engine.decode(ids))

    def special(self, name: str) -> int | None:
        found = getattr(self._engine, f"{name}_token_id")
        return None if found is None else int(found)
