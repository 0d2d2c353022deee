"""Checkpoint conversion with the command line of Megatron-LM's script. See `megacore convert`."""

import sys

from megacore.checkpoint.convert.cli import tool_main
from megacore.cli import run

if __name__ == "__main__":
    sys.exit(run(tool_main, sys.argv[1:]))
