/// Named ranges for Nsight. They cost a few nanoseconds without a profiler attached, and nothing
/// where the NVTX header is absent.
#pragma once

#if __has_include(<nvtx3/nvToolsExt.h>)
#include <nvtx3/nvToolsExt.h>

namespace megacore {

/// Opens a range for the lifetime of the object.
class NvtxRange {
public:
    explicit NvtxRange(const char* name) { nvtxRangePushA(name); }
    ~NvtxRange() { nvtxRangePop(); }
    NvtxRange(const NvtxRange&) = delete;
    NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace megacore

#else

namespace megacore {

/// Stands in where the NVTX header is absent.
class NvtxRange {
public:
    explicit NvtxRange(const char*) {}
    ~NvtxRange() {}  // user-provided: an unused range must not warn
    NvtxRange(const NvtxRange&) = delete;
    NvtxRange& operator=(const NvtxRange&) = delete;
};

}  // namespace megacore
#endif
