from typing import Any

# The arrangement of processes; megacore.parallel.grid is its typed form.
comm: Any
# Its functions take and return numpy arrays; their Python wrappers in megacore.data are typed.
data: Any
# Schedules of pipeline parallelism; their Python wrappers in megacore.parallel are typed.
pipeline: Any

def cpu_features() -> list[str]: ...
def kernel_isa() -> str: ...
