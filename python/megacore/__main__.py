"""`python -m megacore` is the `megacore` command."""

import sys

from megacore.cli import main

sys.exit(main())
