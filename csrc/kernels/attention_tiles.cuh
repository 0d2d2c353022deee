/// What the forward and the backward CUDA kernels of attention.h share: rows, tiles in shared
/// memory, products of tiles, and the launch.
///
/// The rows of a sequence and a group are its queries times their heads, heads fastest, so that a
/// tile of keys serves all of them. Tiles have rows of kHead + 8 elements: with 16 more bytes than
/// a power of two the eight rows of a matrix lie in different banks.
#pragma once

#include <cuda_pipeline.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "core/check.h"
#include "core/math.h"
#include "kernels/attention_range.h"
#include "kernels/launch.h"
#include "kernels/matrix.cuh"
#include "kernels/philox.h"
#include "kernels/vec.cuh"

namespace megacore::cuda {

inline constexpr int kAttentionThreads = 128;
inline constexpr int kAttentionRows = 64;  // of a block: 16 a warp
inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// --- Rows ---------------------------------------------------------------------------------------

/// Where the rows [B, S, G, R, D] or [B, S, G, D] of a tensor lie.
template <class T>
struct Rows {
    T* data;
    std::int64_t batch_stride;
    std::int64_t token_stride;
    std::int64_t group_stride;
    std::int64_t head_stride;

    static Rows of(const TensorView& tensor) {
        const auto& strides = tensor.strides;
        return {
            tensor.as<T>(), strides[0], strides[1], strides[2], tensor.rank == 5 ? strides[3] : 0};
    }

    /// Whether every row may be moved 16 bytes at a time.
    bool vectors() const {
        constexpr std::int64_t kWide = 16 / sizeof(T);
        return aligned16(data) && batch_stride % kWide == 0 && token_stride % kWide == 0 &&
               group_stride % kWide == 0 && head_stride % kWide == 0;
    }

    __device__ __forceinline__ T* at(std::int64_t token, std::int64_t head) const {
        return data + token * token_stride + head * head_stride;
    }
    __device__ __forceinline__ Rows group(std::int64_t batch, std::int64_t group) const {
        Rows own = *this;
        own.data += batch * batch_stride + group * group_stride;
        return own;
    }
};

struct AttentionShape {
    std::int64_t groups;  // G
    std::int64_t ratio;   // R
    std::int64_t rows;    // Sq * R
    std::int64_t keys;    // Sk
    int head;             // D
    bool vectors;         // rows are moved 16 bytes at a time
    float scale;
    AttentionRange range;
    DropoutFactors dropout;
    std::uint64_t seed;
    bool drops;

    static AttentionShape of(const TensorView& q, const TensorView& k, const AttentionRule& rule) {
        return {.groups = q.sizes[2],
                .ratio = q.sizes[3],
                .rows = q.sizes[1] * q.sizes[3],
                .keys = k.sizes[1],
                .head = static_cast<int>(q.sizes[4]),
                .vectors = q.sizes[4] % 8 == 0,
                .scale = static_cast<float>(rule.scale),
                .range = AttentionRange::of(q, k, rule),
                .dropout = DropoutFactors::of({.drop = rule.drop}),
                .seed = rule.seed,
                .drops = rule.drop > 0.0};
    }

    /// Keys that a row sees; nothing behind the last row.
    __device__ __forceinline__ IndexRange keys_of(std::int64_t batch, std::int64_t row) const {
        if (row >= rows) return {0, 0};
        return range.keys_of(batch, row / ratio);
    }

    /// The place of a row in a contiguous [B, Sq, G, R].
    __device__ __forceinline__ std::int64_t number_of(std::int64_t pair, std::int64_t row) const {
        const std::int64_t token = pair / groups * range.queries + row / ratio;
        return (token * groups + pair % groups) * ratio + row % ratio;
    }

    /// The factor of weight (row, key): 0 or 1 / (1 - p).
    __device__ __forceinline__ float keep(std::int64_t pair,
                                          std::int64_t row,
                                          std::int64_t key) const {
        const std::int64_t head_number = pair * ratio + row % ratio;
        const std::int64_t weight = (head_number * range.queries + row / ratio) * keys + key;
        const Philox philox = Philox::at(seed, static_cast<std::uint64_t>(weight) / 4);
        const int word = static_cast<int>(weight % 4);
        const std::uint32_t number = word == 0   ? philox.words[0]
                                     : word == 1 ? philox.words[1]
                                     : word == 2 ? philox.words[2]
                                                 : philox.words[3];
        return (number >> 8) < dropout.threshold ? 0.0f : dropout.scale;
    }
};

/// Keys relative to the first one of a block, which fit into 32 bits where registers are short.
struct NearRange {
    int begin;
    int end;

    static __device__ __forceinline__ NearRange of(IndexRange seen,
                                                   std::int64_t first,
                                                   std::int64_t last) {
        const auto near = [&](std::int64_t key) {
            return static_cast<int>(min(max(key, first), last) - first);
        };
        return {near(seen.begin), near(seen.end)};
    }
    __device__ __forceinline__ bool has(int key) const { return key >= begin && key < end; }
};

// --- Tiles --------------------------------------------------------------------------------------

template <class T, int kRows, int kHead>
struct Tile {
    static constexpr int kStride = kHead + 8;
    static constexpr int kElements = kRows * kStride;
    T* data;

    __device__ __forceinline__ T* at(int row, int column) const {
        return data + row * kStride + column;
    }

    /// Starts copying rows [first, first + kRows) of `source`; what is not there becomes zeros.
    /// `ratio` heads make a token's rows.
    __device__ __forceinline__ void fetch(const Rows<const T>& source,
                                          std::int64_t first,
                                          std::int64_t count,
                                          std::int64_t ratio,
                                          int head,
                                          bool vectors) const {
        constexpr int kPieces = kHead / 8;
        for (int i = static_cast<int>(threadIdx.x); i < kRows * kPieces; i += kAttentionThreads) {
            const int row = i / kPieces;
            const int column = i % kPieces * 8;
            T* const target = at(row, column);
            const std::int64_t number = first + row;
            if (number >= count || column >= head) {
                *reinterpret_cast<uint4*>(target) = uint4{};
                continue;
            }
            const T* const from = source.at(number / ratio, number % ratio) + column;
            if (vectors) {
                __pipeline_memcpy_async(target, from, 16);
            } else {
                for (int k = 0; k < 8; ++k) target[k] = column + k < head ? from[k] : T{};
            }
        }
    }

    /// The warp's 16 rows from `row` on, columns [column, column + 16), as a left factor.
    __device__ __forceinline__ void left(std::uint32_t (&a)[4], int row, int column) const {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        load_matrices(a, at(row + lane % 16, column + lane / 16 * 8));
    }
    /// Rows [row, row + 16) as columns of a right factor: b[0], b[1] of the first eight, b[2],
    /// b[3] of the others.
    __device__ __forceinline__ void right_columns(std::uint32_t (&b)[4],
                                                  int row,
                                                  int column) const {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        load_matrices(b, at(row + lane / 16 * 8 + lane % 8, column + lane / 8 % 2 * 8));
    }
    /// Rows [row, row + 16) as rows of a right factor: b[0], b[1] of the columns [column, column +
    /// 8), b[2], b[3] of the next eight.
    __device__ __forceinline__ void right_rows(std::uint32_t (&b)[4], int row, int column) const {
        const int lane = static_cast<int>(threadIdx.x) % 32;
        load_matrices_transposed(b, at(row + lane % 16, column + lane / 16 * 8));
    }
};

// --- Products of a warp -------------------------------------------------------------------------

/// sums [16, kRight] = left rows [row, row + 16) times the transposed right tile.
template <class T, int kHead, class Left, int kRight>
__device__ __forceinline__ void multiply_transposed(float (&sums)[kRight / 8][4],
                                                    const Left& left,
                                                    int row,
                                                    const Tile<T, kRight, kHead>& right) {
#pragma unroll
    for (int n = 0; n < kRight / 8; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sums[n][i] = 0.0f;
    }
    // Wide heads leave no registers for loads far ahead.
    [[maybe_unused]] constexpr int kUnroll = kHead > 128 ? 4 : kHead / 16;
#pragma unroll kUnroll
    for (int d = 0; d < kHead; d += 16) {
        std::uint32_t a[4];
        left.left(a, row, d);
#pragma unroll
        for (int n = 0; n < kRight / 16; ++n) {
            std::uint32_t b[4];
            right.right_columns(b, n * 16, d);
            multiply_add<T>(sums[2 * n], a, b[0], b[1]);
            multiply_add<T>(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

/// sums [16, kHead] += the fragment `left` [16, kInner], rounded, times the tile's rows.
template <class T, int kHead, int kInner>
__device__ __forceinline__ void multiply_rows(float (&sums)[kHead / 8][4],
                                              const float (&left)[kInner / 8][4],
                                              const Tile<T, kInner, kHead>& right) {
#pragma unroll
    for (int k = 0; k < kInner / 16; ++k) {
        std::uint32_t a[4];
        as_left_factor<T>(a, left[2 * k], left[2 * k + 1]);
#pragma unroll
        for (int d = 0; d < kHead / 16; ++d) {
            std::uint32_t b[4];
            right.right_rows(b, k * 16, d * 16);
            multiply_add<T>(sums[2 * d], a, b[0], b[1]);
            multiply_add<T>(sums[2 * d + 1], a, b[2], b[3]);
        }
    }
}

/// Writes the warp's fragment [16, kHead] as rows, each half times its factor.
template <class T, int kHead>
__device__ __forceinline__ void store_rows(const Rows<T>& target,
                                           const float (&sums)[kHead / 8][4],
                                           std::int64_t first,
                                           std::int64_t count,
                                           std::int64_t ratio,
                                           int head,
                                           const float (&factors)[2]) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const std::int64_t row = first + lane / 4 + 8 * half;
        if (row >= count) continue;
        T* const to = target.at(row / ratio, row % ratio);
#pragma unroll
        for (int d = 0; d < kHead / 8; ++d) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int column = 8 * d + lane % 4 * 2 + i;
                if (column < head) {
                    to[column] = narrow<T>(sums[d][2 * half + i] * factors[half]);
                }
            }
        }
    }
}

// --- Launch -------------------------------------------------------------------------------------

/// Launches with more dynamic shared memory than a kernel has without asking.
template <class... Parameters, class... Arguments>
void launch_large(void (*kernel)(Parameters...), const LaunchShape& shape, Arguments&&... args) {
    MEGACORE_CHECK_CUDA(cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shape.shared_bytes)));
    launch(kernel, shape, std::forward<Arguments>(args)...);
}

/// Calls body(TypeTag<T>, head size of tiles).
template <class Body>
void dispatch_attention(DType dtype, std::int64_t head, const Body& body) {
    MEGACORE_CHECK(
        dtype != DType::kFloat32,
        "q: expected bfloat16 or float16 on CUDA, found float32, which PyTorch's kernels "
        "take");
    const auto with_type = [&](auto tag) {
        if (head <= 32) {
            body(tag, std::integral_constant<int, 32>{});
        } else if (head <= 64) {
            body(tag, std::integral_constant<int, 64>{});
        } else if (head <= 128) {
            body(tag, std::integral_constant<int, 128>{});
        } else {
            body(tag, std::integral_constant<int, 256>{});
        }
    };
    if (dtype == DType::kBFloat16) {
        with_type(TypeTag<__nv_bfloat16>{});
    } else {
        with_type(TypeTag<__half>{});
    }
}

}  // namespace megacore::cuda
