"""Tokenizers behind one interface; never a download."""
