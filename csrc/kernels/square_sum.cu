// CUDA kernels of square_sum.h.
//
// One block of threads for each block of elements, 16 bytes a thread at a time; one more block of
// threads adds up their sums. Bound by memory.
#include <cuda_runtime.h>

#include "kernels/launch.h"
#include "kernels/reduce.cuh"
#include "kernels/square_sum.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kFinalThreads = 256;

template <class T>
__device__ __forceinline__ float squared(T value, float sum) {
    const float wide = widen(value);
    return fmaf(wide, wide, sum);
}

// --- Kernels ------------------------------------------------------------------------------------

// Grid: blocks of kSquareSumBlock elements.
template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) square_sum_kernel(double* sums,  // [blocks]
                                                              const T* x,    // [N]
                                                              std::int64_t size) {
    __shared__ float scratch[kWarpSize];
    const std::int64_t begin = blockIdx.x * kSquareSumBlock;
    const std::int64_t end = begin + kSquareSumBlock < size ? begin + kSquareSumBlock : size;
    float sum = 0.0f;
    for (std::int64_t at = begin + threadIdx.x * kVec; at < end; at += kThreads * kVec) {
        if (at + kVec <= end) {
            const auto pack = Pack<T, kVec>::load(x + at);
#pragma unroll
            for (int k = 0; k < kVec; ++k) sum = squared(pack.elements[k], sum);
        } else {
#pragma unroll 1
            for (std::int64_t i = at; i < end; ++i) sum = squared(x[i], sum);
        }
    }
    sum = row_sum(sum, scratch);
    if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// One block. Thread t takes sums t, t + kFinalThreads, ...
__global__ void __launch_bounds__(kFinalThreads)
    square_sum_total_kernel(double* total, const double* sums, std::int64_t count) {
    __shared__ double shares[kFinalThreads];
    double sum = 0.0;
    for (std::int64_t i = threadIdx.x; i < count; i += kFinalThreads) sum += sums[i];
    shares[threadIdx.x] = sum;
    for (int half = kFinalThreads / 2; half > 0; half /= 2) {
        __syncthreads();  // the shares of the round before are there
        if (static_cast<int>(threadIdx.x) < half) shares[threadIdx.x] += shares[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *total = shares[0];
}

// --- Launcher -----------------------------------------------------------------------------------

template <class T>
void launch_blocks(const SquareSum& args, void* stream) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    const T* x = args.x.as<const T>();
    const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.workspace.sizes[0])),
                            .block = dim3(kThreads),
                            .stream = stream};
    launch(aligned16(x) ? square_sum_kernel<T, kWide> : square_sum_kernel<T, 1>,
           shape,
           args.workspace.as<double>(),
           x,
           args.x.sizes[0]);
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void square_sum(const SquareSum& args, void* stream) {
    check(args);
    if (args.x.numel() > 0) {
        visit_float_dtype(args.x.dtype, [&](auto tag) {
            launch_blocks<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
        });
    }
    const LaunchShape shape{.grid = dim3(1), .block = dim3(kFinalThreads), .stream = stream};
    launch(square_sum_total_kernel,
           shape,
           args.sum.as<double>(),
           args.workspace.as<const double>(),
           args.workspace.sizes[0]);
}

}  // namespace megacore::cuda
