"""Two encoders from a checkpoint, which says how they are built."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from megacore.checkpoint import load_checkpoint
from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers import Tokenizer, build_tokenizer
from megacore.errors import CheckpointError
from megacore.evaluation.pairs import SpecialTokens, write_pair
from megacore.evaluation.retrieval.evidence import Evidence
from megacore.inference.loading import stored_arguments, stored_config
from megacore.models.biencoder import BiencoderModel
from megacore.models.config import ModelConfig


@dataclass(frozen=True)
class Encoders:
    """Two encoders with their tokenizer.

    Attributes:
        model: In eval mode, in float32.
        tokenizer: That it was trained with.
        length: Most tokens of a text.
        identity: What its vectors depend on, in words.
    """

    model: BiencoderModel
    tokenizer: Tokenizer
    length: int
    identity: str

    @torch.inference_mode()
    def questions(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors [n, H] of questions."""
        special = SpecialTokens.of(self.tokenizer)
        rows = [
            [special.cls, *ids[: self.length - 2], special.sep]
            for ids in self.tokenizer.tokenize_batch(texts)
        ]
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int32)
        width = int(lengths.max())
        padded = [[*row, *[special.pad] * (width - len(row))] for row in rows]
        tokens = torch.tensor(padded, dtype=torch.int64, device=self._device)
        vectors: NDArray[np.float32] = self.model.query_tower(tokens, lengths).cpu().float().numpy()
        return vectors

    @torch.inference_mode()
    def passages(self, passages: list[Evidence]) -> NDArray[np.float32]:
        """Vectors [n, H] of passages with their titles."""
        special = SpecialTokens.of(self.tokenizer)
        titles = self.tokenizer.tokenize_batch([passage.title for passage in passages])
        texts = self.tokenizer.tokenize_batch([passage.text for passage in passages])
        tokens = np.empty((len(passages), self.length), dtype=np.int64)
        types = np.empty_like(tokens)
        lengths = [
            write_pair(title, text, special, tokens=tokens[row], types=types[row])
            for row, (title, text) in enumerate(zip(titles, texts, strict=True))
        ]
        used = torch.from_numpy(tokens[:, : max(lengths)]).to(self._device)
        output = self.model.context_tower(used, torch.tensor(lengths, dtype=torch.int32))
        vectors: NDArray[np.float32] = output.cpu().float().numpy()
        return vectors

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def load_encoders(
    directory: str, *, step: int | None, length: int, device: torch.device | str
) -> Encoders:
    """The encoders of a checkpoint.

    Args:
        directory: What training was told to `--save` to.
        step: Iteration to load instead of the newest.
        length: Most tokens of a text; at most the positions of the model.
        device: Where they go.

    Raises:
        CheckpointError: There is no checkpoint, or it holds something else.
        DataError: A tokenizer file is missing or unreadable.
    """
    checkpoint = load_checkpoint(directory, step=step)
    arguments = stored_arguments(checkpoint)
    config = stored_config(ModelConfig, arguments, checkpoint.path).resolved()
    tensors = checkpoint.tensors("model")
    shared = any(name.startswith("shared_model.") for name in tensors)
    tower = "shared_model" if shared else "query_model"
    words = tensors.get(f"{tower}.language_model.embedding.word_embeddings.weight")
    if words is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no two encoders (train them with pretrain_ict.py)"
        )
    projection = tensors.get(f"{tower}.projection_enc.weight")
    model = BiencoderModel(
        config,
        padded_vocab_size=words.shape[0],
        projection=0 if projection is None else projection.shape[0],
        shared=shared,
        device=device,
    )
    checkpoint.load_into("model", dict(model.named_parameters()), cast=True)
    return Encoders(
        model=model.eval(),
        tokenizer=build_tokenizer(stored_config(TokenizerConfig, arguments, checkpoint.path)),
        length=min(length, config.max_position_embeddings or length),
        identity=f"{checkpoint.path.resolve()} {checkpoint.iteration} {length}",
    )
