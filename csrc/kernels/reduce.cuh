/// Sums and maxima over the threads of a row, in a fixed order.
#pragma once

namespace megacore::cuda {

inline constexpr int kWarpSize = 32;

/// Sum over the warp, the same in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, offset);
    }
    return value;
}

/// Sum over the threads with the same threadIdx.y; blockDim.x is a multiple of the warp size. All
/// threads of the block must call it. `scratch` [kWarpSize] belongs to this threadIdx.y, and to
/// this call alone until the next barrier.
__device__ __forceinline__ float row_sum(float value, float* scratch) {
    value = warp_sum(value);
    const int num_warps = blockDim.x / kWarpSize;
    if (num_warps == 1) return value;
    if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
    __syncthreads();  // every warp's sum is in scratch
    float total = 0.0f;
    for (int warp = 0; warp < num_warps; ++warp) total += scratch[warp];
    return total;
}

/// The largest value of the threads with the same threadIdx.y, under the rules of row_sum.
__device__ __forceinline__ float row_max(float value, float* scratch) {
#pragma unroll
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, offset));
    }
    const int num_warps = blockDim.x / kWarpSize;
    if (num_warps == 1) return value;
    if (threadIdx.x % kWarpSize == 0) scratch[threadIdx.x / kWarpSize] = value;
    __syncthreads();  // every warp's value is in scratch
    float largest = scratch[0];
    for (int warp = 1; warp < num_warps; ++warp) largest = fmaxf(largest, scratch[warp]);
    return largest;
}

}  // namespace megacore::cuda
