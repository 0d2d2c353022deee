/// The one way kernels are launched, and the check of CUDA calls. Included by .cu files only.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <utility>

#include "core/check.h"

/// Throws megacore::Error when a CUDA runtime call fails, with the runtime's own words.
#define MEGACORE_CHECK_CUDA(call)                                                           \
    do {                                                                                    \
        const cudaError_t megacore_status = (call);                                         \
        MEGACORE_CHECK(                                                                     \
            megacore_status == cudaSuccess, "CUDA: ", cudaGetErrorString(megacore_status)); \
    } while (false)

namespace megacore::cuda {

struct LaunchShape {
    dim3 grid;
    dim3 block;
    std::size_t shared_bytes = 0;
    void* stream = nullptr;  ///< A cudaStream_t.
};

/// Queues `kernel` on the stream. Does not wait.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments&&... arguments) {
    cudaLaunchConfig_t config{};
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(shape.stream);
    MEGACORE_CHECK_CUDA(
        cudaLaunchKernelEx(&config, kernel, Parameters(std::forward<Arguments>(arguments))...));
}

/// Streaming multiprocessors of the current device.
inline std::int64_t num_multiprocessors() {
    int device = 0;
    int count = 0;
    MEGACORE_CHECK_CUDA(cudaGetDevice(&device));
    MEGACORE_CHECK_CUDA(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
    return count;
}

}  // namespace megacore::cuda
