from __future__ import annotations

from collections.abc import Iterator

import pytest
from worker_pool import WorkerPools


@pytest.fixture(scope="session")
def world() -> Iterator[WorkerPools]:
    """`world(n).run(fn, *args)`: results by rank of `fn(group, *args)` on n processes."""
    pools = WorkerPools()
    yield pools
    pools.stop()
