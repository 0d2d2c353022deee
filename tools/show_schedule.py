"""Draw a pipeline schedule. See `megacore schedule`."""

import sys

from megacore.cli import main

if __name__ == "__main__":
    sys.exit(main(["schedule", *sys.argv[1:]]))
