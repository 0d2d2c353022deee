"""The datasets of a run: training, validation and test."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from megacore.data.blend import Blend, parse_blend
from megacore.data.blended_dataset import BlendedDataset
from megacore.data.config import DataConfig
from megacore.data.gpt_dataset import GPTDataset, GPTKind
from megacore.data.kinds import DatasetKind, Part, SampleSet, Source
from megacore.data.split import SPLITS, SplitMatrix, element_range, split_matrix
from megacore.data.tokenizers import Tokenizer
from megacore.errors import DataError

Dataset = GPTDataset | BlendedDataset

_MOCK_SPLIT = "1,1,1"


class Datasets(NamedTuple):
    """One dataset per split; None where nothing is wanted."""

    train: SampleSet | None
    valid: SampleSet | None
    test: SampleSet | None


@dataclass(frozen=True)
class _Recipe:
    """What all datasets of a run share.

    Attributes:
        data: Settings.
        tokenizer: Its identity enters the identity of the indices.
        kind: Kind of samples.
        seed: Of all shuffles.
        split: Text of --split, None with paths per split.
        matrix: Its bounds.
        may_build: False: only load index files that another process has written.
    """

    data: DataConfig
    tokenizer: Tokenizer
    kind: DatasetKind[Any]
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
    kind: DatasetKind[Any] | None = None,
    may_build: bool = True,
) -> Datasets:
    """Opens the files and builds, or finds, the indices.

    Args:
        data: Resolved settings.
        tokenizer: Says where documents end and what padding is.
        seed: Of all shuffles.
        num_samples: Samples wanted for training, validation and test; None: no such dataset.
        kind: Kind of samples, None for GPT's.
        may_build: False: index files were written by another process, so that not seeing them
            means that the folder of the cache is not shared.

    Raises:
        DataError: A file is damaged, a split has no data, or indices cannot be written.
    """
    kind = kind or GPTKind()
    kind.check(data, tokenizer)
    split = _MOCK_SPLIT if data.mock_data else data.split
    matrix = None if data.per_split_paths else split_matrix(split or "")
    recipe = _Recipe(data, tokenizer, kind, seed, split, matrix, may_build)
    if data.mock_data:
        mock = kind.mock(tokenizer)
        return _split_datasets(Blend((mock.name,), None), [mock], recipe, num_samples)
    if data.data_path:
        blend = parse_blend(data.data_path, flag="--data-path")
        return _split_datasets(blend, _open(blend.prefixes, recipe), recipe, num_samples)
    paths = (data.train_data_path, data.valid_data_path, data.test_data_path)
    built = [
        _own_dataset(split, words, recipe, wanted)
        for split, words, wanted in zip(SPLITS, paths, num_samples, strict=True)
    ]
    return Datasets(*built)


def _split_datasets(
    blend: Blend,
    sources: Sequence[Source],
    recipe: _Recipe,
    num_samples: Sequence[int | None],
) -> Datasets:
    """Datasets of every split out of the same documents."""
    assert recipe.matrix is not None
    built: list[SampleSet | None] = []
    for split, bounds, wanted in zip(SPLITS, recipe.matrix, num_samples, strict=True):
        if wanted is None or bounds is None:
            built.append(None)
        else:
            built.append(_blend_or_single(blend, sources, split, recipe, wanted))
    return Datasets(*built)


def _own_dataset(
    split: str, words: Sequence[str] | None, recipe: _Recipe, wanted: int | None
) -> SampleSet | None:
    """The dataset of a split that has paths of its own."""
    if not words or wanted is None:
        return None
    blend = parse_blend(words, flag=f"--{split}-data-path")
    if blend.weights is not None and len(blend.prefixes) == 1:
        blend = Blend(blend.prefixes, None)  # one weight of one dataset says nothing
    sources = _open(blend.prefixes, recipe)
    return _blend_or_single(blend, sources, split, recipe, wanted)


def _open(prefixes: Sequence[str], recipe: _Recipe) -> list[Source]:
    """The files of all members; many small files open side by side."""
    with ThreadPoolExecutor(max_workers=recipe.data.num_dataset_builder_threads) as pool:
        return list(pool.map(lambda prefix: recipe.kind.open(prefix, recipe.data), prefixes))


def _blend_or_single(
    blend: Blend, sources: Sequence[Source], split: str, recipe: _Recipe, wanted: int
) -> SampleSet:
    if blend.is_single:
        return _member(sources[0], split, recipe, wanted)
    asked = blend.samples_of_members(wanted)
    with ThreadPoolExecutor(max_workers=recipe.data.num_dataset_builder_threads) as pool:
        members = list(
            pool.map(
                lambda item: _member(item[0], split, recipe, item[1]),
                zip(sources, asked, strict=True),
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
    members: Sequence[SampleSet],
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


def _member(source: Source, split: str, recipe: _Recipe, num_samples: int | None) -> SampleSet:
    """The part of one dataset that belongs to a split."""
    data, kind = recipe.data, recipe.kind
    first, last = 0, source.num_elements
    if recipe.matrix is not None:
        bounds = recipe.matrix[SPLITS.index(split)]
        assert bounds is not None
        first, last = element_range(bounds, last)
    if first >= last:
        raise DataError(
            f"{source.name} has {source.num_elements} {kind.elements}, of which --split "
            f"{recipe.split!r} leaves none for the {split} split; give more data, other "
            "proportions, or --eval-iters 0 if no evaluation is wanted"
        )
    class_name = f"Mock{kind.class_name}" if source.path is None else kind.class_name
    identity: dict[str, Any] = {
        "class": class_name,
        "dataset_path": source.path,
        "num_samples": num_samples,
        "index_split": split,
        "random_seed": recipe.seed,
        "sequence_length": data.seq_length,
        "split": recipe.split,
        "split_matrix": recipe.matrix,
        "tokenizer": recipe.tokenizer.identity(),
    }
    part = Part(
        split=split,
        first=first,
        last=last,
        num_samples=num_samples,
        seed=recipe.seed,
        identity=identity,
        cache=_cache_of(source.path, class_name, data),
        may_build=recipe.may_build,
    )
    return kind.member(source, part, data, recipe.tokenizer)


def _cache_of(path: str | None, class_name: str, data: DataConfig) -> Path | None:
    if data.data_cache_path:
        return Path(data.data_cache_path)
    return None if path is None else Path(path) / "cache" / f"{class_name}_indices"
