"""Saving and loading: atomic, checked, no pickle."""
