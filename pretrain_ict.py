"""Train two encoders on the inverse cloze task: Megatron-LM's flags. See `megacore train-ict`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["train-ict", *sys.argv[1:]]))
