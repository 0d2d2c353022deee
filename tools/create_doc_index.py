"""Make the vectors of evidence: Megatron-LM's command line. See `megacore index-evidence`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["index-evidence", *sys.argv[1:]]))
