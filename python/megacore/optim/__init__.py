"""Optimizers, schedules, mixed precision and gradient buffers."""
