"""Tokenizers behind one interface; never a download."""

from __future__ import annotations

from megacore.data.config import TokenizerConfig
from megacore.data.tokenizers.base import Tokenizer, padded_vocab_size

__all__ = ["Tokenizer", "build_tokenizer", "padded_vocab_size"]


def build_tokenizer(config: TokenizerConfig) -> Tokenizer:
    """The tokenizer that a configuration describes.

    Args:
        config: Kind, files and settings; completed and checked here.

    Raises:
        ConfigError: The kind needs a file or setting that is not given.
        DataError: A file is missing, unreadable or of another kind.
    """
    config = config.resolved()
    kind = config.tokenizer_type
    vocab_file, model = config.vocab_file or "", config.tokenizer_model or ""
    # The libraries behind the kinds are imported only when they are used.
    if kind == "GPT2BPETokenizer":
        from megacore.data.tokenizers.gpt2_bpe import GPT2BPETokenizer

        return GPT2BPETokenizer(
            vocab_file, config.merge_file or "", backend=config.tokenizer_backend
        )
    if kind in ("BertWordPieceLowerCase", "BertWordPieceCase"):
        from megacore.data.tokenizers.bert_word_piece import BertWordPieceTokenizer

        return BertWordPieceTokenizer(
            vocab_file,
            lower_case=kind == "BertWordPieceLowerCase",
            extra_ids=config.vocab_extra_ids,
        )
    if kind == "SentencePieceTokenizer":
        from megacore.data.tokenizers.sentence_pieces import SentencePieceTokenizer

        return SentencePieceTokenizer(model, extra_ids=config.vocab_extra_ids)
    if kind == "GPTSentencePieceTokenizer":
        from megacore.data.tokenizers.sentence_pieces import GPTSentencePieceTokenizer

        return GPTSentencePieceTokenizer(model)
    if kind == "Llama2Tokenizer":
        from megacore.data.tokenizers.sentence_pieces import Llama2Tokenizer

        return Llama2Tokenizer(model)
    if kind == "HuggingFaceTokenizer":
        from megacore.data.tokenizers.hugging_face import HuggingFaceTokenizer

        return HuggingFaceTokenizer(model)
    if kind == "TikTokenizer":
        from megacore.data.tokenizers.tiktoken_ranks import TikTokenizer

        return TikTokenizer(
            model,
            pattern=config.tiktoken_pattern or "",
            vocab_size=config.vocab_size,
            num_special_tokens=config.tiktoken_num_special_tokens,
            special_tokens=config.tiktoken_special_tokens,
        )
    if kind == "NullTokenizer":
        from megacore.data.tokenizers.null import NullTokenizer

        return NullTokenizer(config.vocab_size or 0)
    raise ValueError(f"unknown tokenizer type {kind!r}")
