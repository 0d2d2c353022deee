"""A tokenizer of UTF-8 bytes: one character may need several tokens."""

from megacore.data.tokenizers import Tokenizer


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes, 256 ends a document."""

    class_name = "_ByteTokenizer"

    @property
    def vocab_size(self):
        return 257

    @property
    def eod(self):
        return 256

    def tokenize(self, text):
        return list(text.encode())

    def detokenize(self, ids):
        return bytes(i for i in ids if i < 256).decode(errors="replace")
