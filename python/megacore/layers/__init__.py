"""Transformer layers in plain PyTorch; they know no rank."""
