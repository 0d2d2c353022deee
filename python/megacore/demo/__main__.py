"""`python -m megacore.demo` runs the demo."""

import sys

from megacore.cli import run
from megacore.demo.recipe import main

sys.exit(run(main, sys.argv[1:]))
