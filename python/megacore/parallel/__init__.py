"""Parallelism, applied to a finished model from outside."""
