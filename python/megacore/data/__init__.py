"""Datasets, indices, samplers, tokenizers and text preparation."""
