"""Conversion between checkpoint formats: any source to any target, one full tensor at a time."""
