from typing import Any

# Its functions take and return numpy arrays; their Python wrappers in megacore.data are typed.
data: Any
# Schedules of pipeline parallelism; their Python wrappers in megacore.parallel are typed.
pipeline: Any

def cpu_features() -> list[str]: ...
def kernel_isa() -> str: ...
