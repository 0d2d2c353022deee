"""The datasets of a finetuning run: training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megacore.data.chat.config import SftConfig
from megacore.data.chat.dataset import PackedDataset, Texts
from megacore.data.chat.store import Say, tokenized
from megacore.data.chat.template import ChatTemplate, load_template
from megacore.data.chat.tokens import TokenizedChats
from megacore.data.config import DataConfig
from megacore.data.split import SPLITS, element_range, split_matrix
from megacore.data.tokenizers import Tokenizer
from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer
from megacore.errors import DataError


@dataclass(frozen=True)
class ChatDatasets:
    """One dataset per split; None where nothing is wanted."""

    train: PackedDataset | None
    valid: PackedDataset | None
    test: PackedDataset | None


@dataclass(frozen=True)
class _Recipe:
    """What all datasets of a run share."""

    sft: SftConfig
    data: DataConfig
    template: ChatTemplate
    tokenizer: HuggingFaceTokenizer
    seed: int
    may_build: bool
    say: Say


def build_chat_datasets(
    sft: SftConfig,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    num_samples: tuple[int | None, int | None, int | None],
    may_build: bool = True,
    say: Say = lambda text: None,
) -> ChatDatasets:
    """Tokenizes the files, or finds their tokens, and packs them.

    The files of `--data-path` are one list of conversations, of which `--split` cuts the parts in
    order.

    Args:
        sft: Settings of finetuning.
        data: Resolved settings.
        tokenizer: A Hugging Face tokenizer with tokenizer.json.
        seed: Of all shuffles.
        num_samples: Samples wanted for training, validation and test; None: no such dataset.
        may_build: False: another process has tokenized the files.
        say: Told what takes long, and what became of the data.

    Raises:
        DataError: A line cannot be used, a split has no data, or there is no chat template.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise DataError("conversations need a tokenizer of the type HuggingFaceTokenizer")
    override = None if sft.chat_template is None else Path(sft.chat_template)
    template = load_template(tokenizer.directory, override)
    recipe = _Recipe(sft, data, template, tokenizer, seed, may_build, say)
    if data.data_path:
        files = _open(data.data_path, recipe)
        count = sum(map(len, files))
        ranges = [
            None if bounds is None else element_range(bounds, count)
            for bounds in split_matrix(data.split or "")
        ]
        built = [
            None
            if part is None or wanted is None
            else _dataset(split, _texts(files, *part), recipe, wanted)
            for split, part, wanted in zip(SPLITS, ranges, num_samples, strict=True)
        ]
        return ChatDatasets(*built)
    paths = (data.train_data_path, data.valid_data_path, data.test_data_path)
    built = []
    for split, words, wanted in zip(SPLITS, paths, num_samples, strict=True):
        if not words or wanted is None:
            built.append(None)
            continue
        files = _open(words, recipe)
        built.append(_dataset(split, _texts(files, 0, sum(map(len, files))), recipe, wanted))
    return ChatDatasets(*built)


def _open(paths: Sequence[str], recipe: _Recipe) -> list[TokenizedChats]:
    cache = recipe.data.data_cache_path
    return [
        tokenized(
            Path(path),
            template=recipe.template,
            tokenizer=recipe.tokenizer,
            cache=Path(cache) if cache else None,
            may_build=recipe.may_build,
            say=recipe.say,
        )
        for path in paths
    ]


def _texts(files: Sequence[TokenizedChats], first: int, last: int) -> Texts:
    file = np.repeat(np.arange(len(files)), [len(one) for one in files])
    index = np.concatenate([np.arange(len(one)) for one in files])
    return Texts(files, file[first:last], index[first:last])


def _dataset(split: str, texts: Texts, recipe: _Recipe, wanted: int) -> PackedDataset:
    data, names = recipe.data, " ".join(str(one.path) for one in texts.files)
    if len(texts) == 0:
        total = sum(map(len, texts.files))
        raise DataError(
            f"{names}: of {total} texts --split {data.split!r} leaves none for the {split} split; "
            "give more data, other proportions, or --eval-iters 0 if no evaluation is wanted"
        )
    assert data.seq_length is not None
    dataset = PackedDataset(
        texts,
        name=f"{names} ({split})",
        num_samples=wanted,
        sequence_length=data.seq_length,
        seed=recipe.seed,
        overlong=recipe.sft.sft_overlong,
    )
    recipe.say(
        f" > {split}: {len(texts)} texts in {dataset.num_epochs} pass(es) make {len(dataset)} "
        f"sequences, {dataset.fill:.1%} full; {dataset.num_cut} texts were cut to the length of a "
        f"sequence, {dataset.num_dropped} left out"
    )
    return dataset
