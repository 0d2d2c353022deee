"""Checkpoints in the layout of Megatron-LM's `torch` format, of core and of legacy models."""
