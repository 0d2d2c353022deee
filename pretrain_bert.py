"""Train a BERT: takes the command line of Megatron-LM's pretrain_bert.py. See `megacore train`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", "--model-family", "bert", *sys.argv[1:]]))
