"""Train a GPT: takes the command line of Megatron-LM's pretrain_gpt.py. See `megacore train`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
