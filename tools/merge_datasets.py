"""Join datasets: takes the command line of Megatron-LM's script. See `megacore merge`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["merge", *sys.argv[1:]]))
