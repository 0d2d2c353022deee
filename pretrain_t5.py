"""Train a T5: takes the command line of Megatron-LM's pretrain_t5.py. See `megacore train`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "--model-family", "t5", *sys.argv[1:]]))
