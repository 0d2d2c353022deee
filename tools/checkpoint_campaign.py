"""Kills processes that save, or damages checkpoints, many times, and checks every outcome.

    python tools/checkpoint_campaign.py kill --count 2000
    python tools/checkpoint_campaign.py corrupt --count 100000

kill: 1 to 4 processes save together, directly or in the background, and one or all of them get
SIGKILL at a random instant; then exactly the old or the new state must be there, and saving must
go on. corrupt: each damage must be refused when the checkpoint is loaded, and `verify` must name
exactly the files and tensors that are damaged. Ends with exit code 1 at the first exception.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from megacore.testing.corrupt_campaign import corrupt_campaign
from megacore.testing.kill_campaign import kill_campaign

CAMPAIGNS = {"kill": kill_campaign, "corrupt": corrupt_campaign}


def main() -> int:
    """Runs one campaign and prints how often each thing was done, with its outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", default=None, help="where to put a temporary directory")
    words = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="checkpoint-campaign-", dir=words.directory))
    started = time.perf_counter()
    try:
        outcomes = CAMPAIGNS[words.campaign](
            root / "checkpoints",
            count=words.count,
            seed=words.seed,
            say=lambda line: print(line, flush=True),
        )
    finally:
        shutil.rmtree(root, ignore_errors=True)
    for name, times in sorted(outcomes.items()):
        print(f"{times:7d}  {name}")
    print(f"{outcomes.total():7d}  in {time.perf_counter() - started:.0f} s, all as it must be")
    return 0


if __name__ == "__main__":
    sys.exit(main())
