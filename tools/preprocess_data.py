"""Text to .bin/.idx: takes the command line of Megatron-LM's script. See `megacore preprocess`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
