"""Conversations as training data: read, rendered, tokenized once, packed into sequences."""
