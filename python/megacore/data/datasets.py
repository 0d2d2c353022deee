"""The datasets of a run: training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from megacore.data.blend import Blend, parse_blend
from megacore.data.blended_dataset import BlendedDataset
from megacore.data.config import DataConfig
from megacore.data.gpt_dataset import (
    Documents,
    GPTDataset,
    Rules,
    indexed_documents,
    mock_documents,
)
from megacore.data.indexed_dataset import IndexedDataset
from megacore.data.split import SPLITS, SplitMatrix, element_range, split_matrix
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError

Dataset = GPTDataset | BlendedDataset

_MOCK_SPLIT = "1,1,1"


class Datasets(NamedTuple):
    """One dataset per split; None where nothing is wanted."""

    train: Dataset | None
    valid: Dataset | None
    test: Dataset | None


@dataclass(frozen=True)
class _Recipe:
    """What all datasets of a run share.

    Attributes:
        data: Settings.
        tokenizer: Its identity enters the identity of the indices.
        rules: What is derived from tokens.
        seed: Of all shuffles.
        split: Text of --split, None with paths per split.
        matrix: Its bounds.
        may_build: False: only load index files that another process has written.
    """

    data: DataConfig
    tokenizer: Tokenizer
    rules: Rules
    seed: int
    split: str | None
    matrix: SplitMatrix | None
    may_build: bool


def build_datasets(
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    seed: int,
    num_samples: tuple[int | None, int | None, int | None],
    may_build: bool = True,
) -> Datasets:
    """Opens the files and builds, or finds, the indices.

    Args:
        data: Resolved settings.
        tokenizer: Says where documents end and what padding is.
        seed: Of all shuffles.
        num_samples: Samples wanted for training, validation and test; None: no such dataset.
        may_build: False: index files were written by another process, so that not seeing them
            means that the folder of the cache is not shared.

    Raises:
        DataError: A file is damaged, a split has no data, or indices cannot be written.
    """
    rules = _rules(data, tokenizer)
    split = _MOCK_SPLIT if data.mock_data else data.split
    matrix = None if data.per_split_paths else split_matrix(split or "")
    recipe = _Recipe(data, tokenizer, rules, seed, split, matrix, may_build)
    if data.mock_data:
        mock = mock_documents(rules.eod)
        return _split_datasets(Blend((mock.name,), None), [mock], recipe, num_samples)
    if data.data_path:
        blend = parse_blend(data.data_path, flag="--data-path")
        return _split_datasets(blend, _open(blend.prefixes, data), recipe, num_samples)
    paths = (data.train_data_path, data.valid_data_path, data.test_data_path)
    built = [
        _own_dataset(split, words, recipe, wanted)
        for split, words, wanted in zip(SPLITS, paths, num_samples, strict=True)
    ]
    return Datasets(*built)


def _rules(data: DataConfig, tokenizer: Tokenizer) -> Rules:
    needs_eod = data.eod_mask_loss or data.reset_position_ids or data.reset_attention_mask
    return Rules(
        eod=tokenizer.eod if needs_eod or data.mock_data else -1,
        pad=tokenizer.pad,
        mask_eod_loss=data.eod_mask_loss,
        reset_position_ids=data.reset_position_ids,
        cut_at_eod=data.reset_attention_mask,
    )


def _split_datasets(
    blend: Blend,
    documents: Sequence[Documents],
    recipe: _Recipe,
    num_samples: Sequence[int | None],
) -> Datasets:
    """Datasets of every split out of the same documents."""
    assert recipe.matrix is not None
    built: list[Dataset | None] = []
    for split, bounds, wanted in zip(SPLITS, recipe.matrix, num_samples, strict=True):
        if wanted is None or bounds is None:
            built.append(None)
        else:
            built.append(_blend_or_single(blend, documents, split, recipe, wanted))
    return Datasets(*built)


def _own_dataset(
    split: str, words: Sequence[str] | None, recipe: _Recipe, wanted: int | None
) -> Dataset | None:
    """The dataset of a split that has paths of its own."""
    if not words or wanted is None:
        return None
    blend = parse_blend(words, flag=f"--{split}-data-path")
    if blend.weights is not None and len(blend.prefixes) == 1:
        blend = Blend(blend.prefixes, None)  # one weight of one dataset says nothing
    documents = _open(blend.prefixes, recipe.data)
    return _blend_or_single(blend, documents, split, recipe, wanted)


def _open(prefixes: Sequence[str], data: DataConfig) -> list[Documents]:
    """The files of all members; many small files open side by side."""

    def open_one(prefix: str) -> Documents:
        return indexed_documents(IndexedDataset(prefix, mmap=data.mmap_bin_files))

    with ThreadPoolExecutor(max_workers=max(data.num_dataset_builder_threads, 1)) as pool:
        return list(pool.map(open_one, prefixes))


def _blend_or_single(
    blend: Blend, documents: Sequence[Documents], split: str, recipe: _Recipe, wanted: int
) -> Dataset:
    if blend.is_single:
        return _member(documents[0], split, recipe, wanted)
    asked = blend.samples_of_members(wanted)
    with ThreadPoolExecutor(max_workers=recipe.data.num_dataset_builder_threads) as pool:
        members = list(
            pool.map(
                lambda item: _member(item[0], split, recipe, item[1]),
                zip(documents, asked, strict=True),
            )
        )
    weights, size = _proportions(blend, asked, members, recipe, wanted)
    cache = recipe.data.data_cache_path
    return BlendedDataset(
        members,
        weights=weights,
        size=size,
        split=split,
        renormalize=recipe.data.renormalize_blend_weights,
        cache=Path(cache) if cache else None,
        may_build=recipe.may_build,
    )


def _proportions(
    blend: Blend,
    asked: Sequence[int | None],
    members: Sequence[GPTDataset],
    recipe: _Recipe,
    wanted: int,
) -> tuple[Sequence[float], int]:
    """Weights and size of a blend."""
    if blend.weights is None:
        lengths = [len(member) for member in members]
        return [float(length) for length in lengths], min(wanted, sum(lengths))
    counts = [count or 0 for count in asked]
    if recipe.data.renormalize_blend_weights:
        return [count / sum(counts) for count in counts], sum(counts)
    return blend.weights, sum(counts)


def _member(
    documents: Documents, split: str, recipe: _Recipe, num_samples: int | None
) -> GPTDataset:
    """The part of one dataset that belongs to a split."""
    data = recipe.data
    if recipe.matrix is not None:
        bounds = recipe.matrix[SPLITS.index(split)]
        assert bounds is not None
        first, last = element_range(bounds, documents.last)
        documents = replace(documents, first=first, last=last)
    if documents.first >= documents.last:
        raise DataError(
            f"{documents.name} has {len(documents.lengths)} sequences, of which --split "
            f"{recipe.split!r} leaves none for the {split} split; give more data, other "
            "proportions, or --eval-iters 0 if no evaluation is wanted"
        )
    assert data.seq_length is not None
    is_mock = documents.path is None
    identity: dict[str, Any] = {
        "class": "MockGPTDataset" if is_mock else "GPTDataset",
        "dataset_path": documents.path,
        "num_samples": num_samples,
        "index_split": split,
        "random_seed": recipe.seed,
        "sequence_length": data.seq_length,
        "split": recipe.split,
        "split_matrix": recipe.matrix,
        "tokenizer": recipe.tokenizer.identity(),
    }
    return GPTDataset(
        documents,
        identity=identity,
        split=split,
        num_samples=num_samples,
        sequence_length=data.seq_length,
        seed=recipe.seed,
        rules=recipe.rules,
        cache=_cache_of(documents, identity["class"], data),
        may_build=recipe.may_build,
    )


def _cache_of(documents: Documents, kind: str, data: DataConfig) -> Path | None:
    if data.data_cache_path:
        return Path(data.data_cache_path)
    if documents.path is None:
        return None
    return Path(documents.path) / "cache" / f"{kind}_indices"
