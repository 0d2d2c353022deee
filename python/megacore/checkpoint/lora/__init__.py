"""Adapters apart from their base model: read, merged, exchanged with PEFT."""
