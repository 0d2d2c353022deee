"""From raw text to indexed token files."""
