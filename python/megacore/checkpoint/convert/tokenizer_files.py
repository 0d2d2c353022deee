"""The tokenizer files that travel with a model, and how the tokenizer is built from them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from megacore.checkpoint.convert.model_stream import ModelDescription
from megacore.checkpoint.convert.token_ranks import files_of_ranks, read_ranks
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import Tokenizer, build_tokenizer
from megacore.errors import CheckpointError

PATH_FIELDS = ("tokenizer_model", "vocab_file", "merge_file")

# What a Hugging Face directory may hold of its tokenizer.
HUGGING_FACE_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
)

# Names under which other programs look for the files of each kind.
_USUAL_NAMES = {
    ("GPT2BPETokenizer", "vocab_file"): "vocab.json",
    ("GPT2BPETokenizer", "merge_file"): "merges.txt",
    ("BertWordPieceLowerCase", "vocab_file"): "vocab.txt",
    ("BertWordPieceCase", "vocab_file"): "vocab.txt",
    ("SentencePieceTokenizer", "tokenizer_model"): "tokenizer.model",
    ("GPTSentencePieceTokenizer", "tokenizer_model"): "tokenizer.model",
    ("Llama2Tokenizer", "tokenizer_model"): "tokenizer.model",
}


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer and its files, as `ModelDescription` describes them.

    Attributes:
        values: Fields of `data.config.TokenizerConfig`.
        files: File name -> where it is, or its content.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Path | bytes] = field(default_factory=dict)


def of_directory(directory: Path) -> TokenizerFiles:
    """The tokenizer of a Hugging Face directory; nothing when it has none."""
    files: dict[str, Path | bytes] = {
        name: directory / name for name in HUGGING_FACE_FILES if (directory / name).is_file()
    }
    if "tokenizer.json" in files:
        return TokenizerFiles(hugging_face("."), files)
    if "tokenizer.model" in files:
        return TokenizerFiles(of_model(directory / "tokenizer.model").values, files)
    if {"vocab.json", "merges.txt"} <= files.keys():
        values = {
            "tokenizer_type": "GPT2BPETokenizer",
            "vocab_file": "vocab.json",
            "merge_file": "merges.txt",
        }
        return TokenizerFiles(values, files)
    return TokenizerFiles({}, files)


def of_model(path: Path) -> TokenizerFiles:
    """The tokenizer of one file or directory that a user names: its kind is found out.

    Raises:
        CheckpointError: It is not there, or is no tokenizer that can be recognised.
    """
    if path.is_dir() or path.name == "tokenizer.json":
        found = of_directory(path if path.is_dir() else path.parent)
        if found.values:
            return found
        raise CheckpointError(f"{path}: holds no tokenizer.json, tokenizer.model or vocab.json")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    # A SentencePiece model is a protobuf whose first field (1, a message) is the first piece.
    if start[:1] == b"\x0a":
        values = {"tokenizer_type": "Llama2Tokenizer", "tokenizer_model": "tokenizer.model"}
        return TokenizerFiles(values, {"tokenizer.model": path})
    try:
        ranks = read_ranks(path)
        if ranks is not None:
            return TokenizerFiles(hugging_face("."), files_of_ranks(ranks, later_names=False))
    except ValueError as error:
        raise CheckpointError(f"{path}: not a tokenizer that can be used: {error}") from error
    raise CheckpointError(
        f"{path}: not a tokenizer that can be recognised: expected a SentencePiece model, token "
        "ranks of Llama 3, or a directory with tokenizer.json"
    )


def of_vocabulary(vocab_file: Path, merge_file: Path | None) -> TokenizerFiles:
    """The tokenizer of a vocabulary file, with merges (GPT-2 BPE) or without (BERT WordPiece)."""
    if merge_file is None:
        values = {"tokenizer_type": "BertWordPieceLowerCase", "vocab_file": "vocab.txt"}
        return TokenizerFiles(values, {"vocab.txt": vocab_file})
    values = {
        "tokenizer_type": "GPT2BPETokenizer",
        "vocab_file": "vocab.json",
        "merge_file": "merges.txt",
    }
    return TokenizerFiles(values, {"vocab.json": vocab_file, "merges.txt": merge_file})


def of_arguments(
    arguments: Mapping[str, Any], names: tuple[str, ...], root: Path
) -> TokenizerFiles:
    """The tokenizer that the stored arguments of a training run describe.

    Files that are no longer there are left out; the kind of tokenizer is kept.

    Args:
        arguments: Stored values by field name.
        names: Fields of `data.config.TokenizerConfig`.
        root: Directory that relative paths are looked for in first.
    """
    values = {name: arguments[name] for name in names if arguments.get(name) is not None}
    files: dict[str, Path | bytes] = {}
    kind = str(values.get("tokenizer_type"))
    for name in PATH_FIELDS:
        if not values.get(name):
            continue
        path = resolve(str(values[name]), root)
        if path.is_dir():
            files.update(of_directory(path).files)
            values[name] = "."
        elif path.is_file():
            usual = _USUAL_NAMES.get((kind, name), path.name)
            files[usual] = path
            values[name] = usual
        else:
            del values[name]
    return TokenizerFiles(values, files)


def resolve(path: str, root: Path) -> Path:
    """Where a stored tokenizer path is: inside `root` if it is there, otherwise as it is."""
    inside = root / path
    return inside if not Path(path).is_absolute() and inside.exists() else Path(path)


def placed_tokenizer(tokenizer: TokenizerFiles, folder: str) -> dict[str, Any]:
    """The values with paths relative to a target that keeps the files in `folder`."""
    placed = dict(tokenizer.values)
    for name in PATH_FIELDS:
        if placed.get(name):
            placed[name] = (Path(folder) / placed[name]).as_posix()
    return placed


def copy_tokenizer(directory: Path, tokenizer: TokenizerFiles, folder: str) -> None:
    """Copies the files into `folder` of a target.

    Raises:
        CheckpointError: A name leads out of the folder.
        OSError: A file cannot be read or written.
    """
    for name, content in tokenizer.files.items():
        if Path(name).name != name:
            raise CheckpointError(f"tokenizer file {name!r}: expected a plain file name")
        place = directory / folder / name
        place.parent.mkdir(exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            shutil.copyfile(content, place)


def built(tokenizer: TokenizerFiles) -> Tokenizer:
    """The tokenizer itself, from its files wherever they are.

    Raises:
        CheckpointError: Nothing says what kind of tokenizer it is.
        ConfigError, DataError: Files are missing, or cannot be read.
    """
    if not tokenizer.values:
        raise CheckpointError("there is no tokenizer; give --tokenizer-model")
    known = {one.name for one in fields(TokenizerConfig)}
    with tempfile.TemporaryDirectory() as folder:
        # The files may lie in several places, or only in the file of a model.
        copy_tokenizer(Path(folder), tokenizer, "")
        values: dict[str, Any] = {
            name: str(Path(folder) / value) if name in PATH_FIELDS else value
            for name, value in tokenizer.values.items()
            if name in known
        }
        return build_tokenizer(TokenizerConfig(**values))


def tokenizer_of(description: ModelDescription) -> TokenizerFiles:
    """The tokenizer of a description."""
    return TokenizerFiles(description.tokenizer, description.tokenizer_files)


def hugging_face(path: str) -> dict[str, str]:
    """Values of a tokenizer that lies in a directory as Hugging Face saves it."""
    return {"tokenizer_type": "HuggingFaceTokenizer", "tokenizer_model": path}
