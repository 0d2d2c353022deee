"""Evaluate on a task: takes the command line of Megatron-LM's tasks/main.py."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
