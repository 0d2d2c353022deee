"""The demo: from text that every CPython carries to a trained, resumed, generating GPT."""
