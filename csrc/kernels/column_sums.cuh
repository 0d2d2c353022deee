/// Sums of the columns of a matrix of partial sums, in a fixed order.
#pragma once

#include <cstdint>

#include "core/math.h"
#include "kernels/launch.h"
#include "kernels/reduce.cuh"
#include "kernels/vec.cuh"

namespace megacore::cuda {

inline constexpr int kColumnSumRows = 8;

/// blockDim = (warp size, kColumnSumRows), grid over columns. Thread y takes rows y,
/// y + kColumnSumRows, ...
template <class T>
__global__ void column_sums_kernel(T* sums,               // [width]
                                   const float* partial,  // [num_rows, width]
                                   std::int64_t num_rows,
                                   std::int64_t width) {
    __shared__ float row_sums[kColumnSumRows][kWarpSize];
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
    float sum = 0.0f;
    if (column < width) {
        for (std::int64_t row = threadIdx.y; row < num_rows; row += kColumnSumRows) {
            sum += partial[row * width + column];
        }
    }
    row_sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all rows' sums are there
    if (threadIdx.y == 0 && column < width) {
        float total = 0.0f;
#pragma unroll
        for (int y = 0; y < kColumnSumRows; ++y) total += row_sums[y][threadIdx.x];
        sums[column] = narrow<T>(total);
    }
}

/// Queues sums[column] = sum over rows of partial[row][column].
template <class T>
void launch_column_sums(
    T* sums, const float* partial, std::int64_t num_rows, std::int64_t width, void* stream) {
    const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div(width, kWarpSize))),
                            .block = dim3(kWarpSize, kColumnSumRows),
                            .stream = stream};
    launch(column_sums_kernel<T>, shape, sums, partial, num_rows, width);
}

}  // namespace megacore::cuda
