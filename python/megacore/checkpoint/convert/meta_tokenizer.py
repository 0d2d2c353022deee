"""The tokenizer of a Meta Llama: a SentencePiece model (1 and 2), or ranks of tokens (3)."""

from __future__ import annotations

from pathlib import Path

from megacore.checkpoint.convert.token_ranks import NUM_SPECIAL, files_of_ranks, read_ranks
from megacore.checkpoint.convert.tokenizer_files import TokenizerFiles, hugging_face, of_model
from megacore.errors import CheckpointError


def meta_tokenizer(
    directory: Path, vocab_size: int, *, later_names: bool
) -> tuple[TokenizerFiles, list[str]]:
    """The tokenizer, which Meta puts beside the weights or one directory above.

    Args:
        directory: Of the weights.
        vocab_size: Rows of the word embedding.
        later_names: Name special tokens as from Llama 3.1 on.

    Returns:
        The tokenizer, empty if it cannot be carried over, and remarks for the user.
    """
    places = [directory / "tokenizer.model", directory.parent / "tokenizer.model"]
    place = next((one for one in places if one.is_file()), None)
    if place is None:
        return TokenizerFiles(), [f"{directory} holds no tokenizer.model: give --tokenizer-model"]
    try:
        ranks = read_ranks(place)
        if ranks is None:
            return of_model(place), []
        if len(ranks) + NUM_SPECIAL != vocab_size:
            raise ValueError(
                f"{len(ranks)} tokens and {NUM_SPECIAL} special ones are not the {vocab_size} rows "
                "of the word embedding"
            )
        files = files_of_ranks(ranks, later_names=later_names)
        return TokenizerFiles(hugging_face("."), files), []
    except (CheckpointError, ValueError) as error:
        reason = f"the tokenizer of {place} is not carried over ({error}): give --tokenizer-model"
        return TokenizerFiles(), [reason]
