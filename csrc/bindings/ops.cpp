// megacore._ops: torch.ops.megacore.* over torch's stable ABI.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(megacore, library) {
    (void)library;
}
