// CUDA kernels of norm.h.
//
// A row belongs to blockDim.x threads; threadIdx.y counts rows of a block, so that short rows (QK
// norms of 64 or 128) still fill it. Where a row fits, its elements stay in registers between the
// sums and the output: one read of each input and one write of each output, 2 elements moved per
// element of x in forward and 3 in backward. Longer or unaligned rows are read again, mostly from
// the caches. Bound by memory.
// Backward: a fixed number of blocks walks over the rows and keeps its share of the weight and bias
// gradients in registers (or in its own rows of the workspace); norm_reduce adds the shares.
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "core/math.h"
#include "kernels/launch.h"
#include "kernels/norm.h"
#include "kernels/reduce.cuh"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kMaxForwardThreads = 1024;
constexpr int kMaxBackwardThreads = 512;  // leaves 128 registers a thread
constexpr int kMaxRowsPerBlock = 4;
constexpr int kValuesPerThread = 16;  // floats of a cached row
constexpr int kReduceRows = 8;

template <class X, class W>
struct ForwardParams {
    X* out;           // [M, H]
    float* mean;      // [M] or null
    float* rstd;      // [M]
    const X* x;       // [M, H]
    const W* weight;  // [H]
    const W* bias;    // [H] or null
    std::int64_t num_rows;
    std::int64_t hidden;
    float eps;
    float shift;  // added to weight: 1 when zero-centred
};

template <class X, class W>
struct BackwardParams {
    X* dx;              // [M, H]
    float* partial;     // [gridDim.x * blockDim.y, 2, H]
    const X* dout;      // [M, H]
    const X* x;         // [M, H]
    const W* weight;    // [H]
    const float* mean;  // [M] or null
    const float* rstd;  // [M]
    std::int64_t num_rows;
    std::int64_t hidden;
    float shift;
};

// --- Device helpers -----------------------------------------------------------------------------

// Calls body(item, column) for the columns of this thread. kItems > 0: exactly that many vectors
// cover the row, unrolled, so that arrays indexed by `item` stay in registers. kItems = 0: as many
// as the row needs, and `item` is 0.
template <int kItems, int kVec, class Body>
__device__ __forceinline__ void for_each_column(std::int64_t hidden, const Body& body) {
    const std::int64_t first = static_cast<std::int64_t>(threadIdx.x) * kVec;
    const std::int64_t stride = static_cast<std::int64_t>(blockDim.x) * kVec;
    if constexpr (kItems > 0) {
#pragma unroll
        for (int item = 0; item < kItems; ++item) {
            const std::int64_t column = first + item * stride;
            if (column < hidden) body(item, column);
        }
    } else {
        for (std::int64_t column = first; column < hidden; column += stride) body(0, column);
    }
}

// --- Kernels ------------------------------------------------------------------------------------

// Grid: rows / blockDim.y. Rows past the end compute nothing but take part in the barriers.
template <class X, class W, int kVec, int kItems, bool kLayerNorm>
__global__ void __launch_bounds__(kMaxForwardThreads)
    norm_forward_kernel(const ForwardParams<X, W> p) {
    constexpr bool kCached = kItems > 0;
    constexpr int kSlots = kCached ? kItems : 1;
    __shared__ float scratch[2][kMaxRowsPerBlock][kWarpSize];

    const std::int64_t row = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    const std::int64_t hidden = row < p.num_rows ? p.hidden : 0;
    const X* x = p.x + row * p.hidden;
    const float scale = 1.0f / static_cast<float>(p.hidden);

    Pack<X, kVec> cache[kSlots];
    float sum = 0.0f;
    if constexpr (kCached || kLayerNorm) {
        for_each_column<kItems, kVec>(hidden, [&](int item, std::int64_t column) {
            cache[item] = Pack<X, kVec>::load(x + column);
#pragma unroll
            for (int k = 0; k < kVec; ++k) sum += widen(cache[item].elements[k]);
        });
    }
    float mean = 0.0f;
    if constexpr (kLayerNorm) mean = row_sum(sum, scratch[0][threadIdx.y]) * scale;

    float squares = 0.0f;
    for_each_column<kItems, kVec>(hidden, [&](int item, std::int64_t column) {
        if constexpr (!kCached) cache[item] = Pack<X, kVec>::load(x + column);
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            const float d = widen(cache[item].elements[k]) - mean;
            squares = fmaf(d, d, squares);
        }
    });
    // The second scratch, so that no barrier is needed before it is written.
    const float rstd = rsqrtf(row_sum(squares, scratch[1][threadIdx.y]) * scale + p.eps);

    for_each_column<kItems, kVec>(hidden, [&](int item, std::int64_t column) {
        if constexpr (!kCached) cache[item] = Pack<X, kVec>::load(x + column);
        const auto weight = Pack<W, kVec>::load(p.weight + column);
        Pack<W, kVec> bias{};
        if (p.bias != nullptr) bias = Pack<W, kVec>::load(p.bias + column);
        Pack<X, kVec> out;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            const float normalized = (widen(cache[item].elements[k]) - mean) * rstd;
            const float w = widen(weight.elements[k]) + p.shift;
            const float b = p.bias != nullptr ? widen(bias.elements[k]) : 0.0f;
            out.elements[k] = narrow<X>(fmaf(normalized, w, b));
        }
        out.store(p.out + row * p.hidden + column);
    });
    if (threadIdx.x == 0 && row < p.num_rows) {
        if constexpr (kLayerNorm) p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
}

// Grid: any; this thread's rows are its first row and every (gridDim.x * blockDim.y)-th after it.
template <class X, class W, int kVec, int kItems, bool kLayerNorm>
__global__ void __launch_bounds__(kMaxBackwardThreads, 1)
    norm_backward_kernel(const BackwardParams<X, W> p) {
    constexpr bool kCached = kItems > 0;
    constexpr int kSlots = kCached ? kItems : 1;
    using Share = Pack<float, kVec>;
    __shared__ float scratch[2][kMaxRowsPerBlock][kWarpSize];

    const std::int64_t share = static_cast<std::int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
    const std::int64_t num_shares = static_cast<std::int64_t>(gridDim.x) * blockDim.y;
    const std::int64_t block_first = static_cast<std::int64_t>(blockIdx.x) * blockDim.y;
    float* dweight_share = p.partial + 2 * share * p.hidden;
    float* dbias_share = dweight_share + p.hidden;
    const float scale = 1.0f / static_cast<float>(p.hidden);

    Share dweight[kSlots] = {};
    Share dbias[kSlots] = {};
    if constexpr (!kCached) {
        for_each_column<0, kVec>(p.hidden, [&](int, std::int64_t column) {
            Share{}.store(dweight_share + column);
            Share{}.store(dbias_share + column);
        });
    }

    // The bound is that of the block's first row: all its threads meet at the same barriers.
    for (std::int64_t offset = 0; block_first + offset < p.num_rows; offset += num_shares) {
        const std::int64_t row = share + offset;
        const bool active = row < p.num_rows;
        const std::int64_t hidden = active ? p.hidden : 0;
        const X* x = p.x + row * p.hidden;
        const X* dout = p.dout + row * p.hidden;
        const float mean = kLayerNorm && active ? p.mean[row] : 0.0f;
        const float rstd = active ? p.rstd[row] : 0.0f;

        Pack<X, kVec> x_cache[kSlots];
        Pack<X, kVec> dout_cache[kSlots];
        float sum_g = 0.0f;
        float sum_gx = 0.0f;
        for_each_column<kItems, kVec>(hidden, [&](int item, std::int64_t column) {
            x_cache[item] = Pack<X, kVec>::load(x + column);
            dout_cache[item] = Pack<X, kVec>::load(dout + column);
            const auto weight = Pack<W, kVec>::load(p.weight + column);
            if constexpr (!kCached) {
                dweight[0] = Share::load(dweight_share + column);
                dbias[0] = Share::load(dbias_share + column);
            }
#pragma unroll
            for (int k = 0; k < kVec; ++k) {
                const float dy = widen(dout_cache[item].elements[k]);
                const float xhat = (widen(x_cache[item].elements[k]) - mean) * rstd;
                const float g = dy * (widen(weight.elements[k]) + p.shift);
                sum_g += g;
                sum_gx = fmaf(g, xhat, sum_gx);
                float& dw = dweight[item].elements[k];
                dw = fmaf(dy, xhat, dw);
                dbias[item].elements[k] += dy;
            }
            if constexpr (!kCached) {
                dweight[0].store(dweight_share + column);
                dbias[0].store(dbias_share + column);
            }
        });
        const float mean_gx = row_sum(sum_gx, scratch[0][threadIdx.y]) * scale;
        float mean_g = 0.0f;
        if constexpr (kLayerNorm) mean_g = row_sum(sum_g, scratch[1][threadIdx.y]) * scale;

        for_each_column<kItems, kVec>(hidden, [&](int item, std::int64_t column) {
            if constexpr (!kCached) {
                x_cache[item] = Pack<X, kVec>::load(x + column);
                dout_cache[item] = Pack<X, kVec>::load(dout + column);
            }
            const auto weight = Pack<W, kVec>::load(p.weight + column);
            Pack<X, kVec> dx;
#pragma unroll
            for (int k = 0; k < kVec; ++k) {
                const float xhat = (widen(x_cache[item].elements[k]) - mean) * rstd;
                const float g =
                    widen(dout_cache[item].elements[k]) * (widen(weight.elements[k]) + p.shift);
                dx.elements[k] = narrow<X>(((g - xhat * mean_gx) - mean_g) * rstd);
            }
            dx.store(p.dx + row * p.hidden + column);
        });
        __syncthreads();  // both scratches were read; the next row writes them
    }

    if constexpr (kCached) {
        for_each_column<kItems, kVec>(p.hidden, [&](int item, std::int64_t column) {
            dweight[item].store(dweight_share + column);
            dbias[item].store(dbias_share + column);
        });
    }
}

// Sums the shares of one column: blockDim = (warp size, kReduceRows), grid.x over columns, grid.y 0
// for the weight and 1 for the bias. Thread y takes shares y, y + kReduceRows, ...
template <class W>
__global__ void norm_reduce_kernel(W* dweight,  // [H]
                                   W* dbias,    // [H] or null
                                   const float* partial,
                                   std::int64_t num_shares,
                                   std::int64_t hidden) {
    __shared__ float sums[kReduceRows][kWarpSize];
    const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
    float sum = 0.0f;
    if (column < hidden) {
        for (std::int64_t share = threadIdx.y; share < num_shares; share += kReduceRows) {
            sum += partial[(2 * share + blockIdx.y) * hidden + column];
        }
    }
    sums[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all rows' sums are there
    if (threadIdx.y == 0 && column < hidden) {
        float total = 0.0f;
#pragma unroll
        for (int y = 0; y < kReduceRows; ++y) total += sums[y][threadIdx.x];
        (blockIdx.y == 0 ? dweight : dbias)[column] = narrow<W>(total);
    }
}

// --- Launchers ----------------------------------------------------------------------------------

// Threads of a row: enough that each holds kValuesPerThread values at most, in whole warps.
struct Geometry {
    int threads;         // blockDim.x
    int rows_per_block;  // blockDim.y
    bool cached;         // a row fits into the registers of its threads
};

Geometry choose_geometry(std::int64_t hidden, int vec, int max_threads) {
    const std::int64_t vectors = ceil_div(hidden, vec);
    // One vector a thread up to 256 threads, then more vectors before more threads.
    const std::int64_t wanted =
        vectors <= 256 ? vectors : std::max<std::int64_t>(256, ceil_div(hidden, kValuesPerThread));
    const int threads =
        static_cast<int>(std::min<std::int64_t>(round_up(wanted, kWarpSize), max_threads));
    return {.threads = threads,
            .rows_per_block = std::clamp(128 / threads, 1, kMaxRowsPerBlock),
            .cached = hidden <= static_cast<std::int64_t>(threads) * kValuesPerThread};
}

// Calls body(vec, items) with integral constants for the vector width and the vectors of a thread;
// items 0 means that the row does not fit into registers.
template <class X, class Body>
Geometry dispatch_geometry(std::int64_t hidden, bool vectors, int max_threads, const Body& body) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(X));
    if (vectors && hidden % kWide == 0) {
        const Geometry geometry = choose_geometry(hidden, kWide, max_threads);
        const std::integral_constant<int, kWide> vec;
        if (geometry.cached && hidden <= static_cast<std::int64_t>(geometry.threads) * kWide) {
            body(geometry, vec, std::integral_constant<int, 1>{});
        } else if (geometry.cached) {
            body(geometry, vec, std::integral_constant<int, kValuesPerThread / kWide>{});
        } else {
            body(geometry, vec, std::integral_constant<int, 0>{});
        }
        return geometry;
    }
    const Geometry geometry = choose_geometry(hidden, 1, max_threads);
    body(geometry, std::integral_constant<int, 1>{}, std::integral_constant<int, 0>{});
    return geometry;
}

template <class X, class W>
void launch_forward(const NormForward& args, void* stream) {
    const ForwardParams<X, W> params{
        .out = args.out.as<X>(),
        .mean = args.mean.as<float>(),
        .rstd = args.rstd.as<float>(),
        .x = args.x.as<const X>(),
        .weight = args.weight.as<const W>(),
        .bias = args.bias.as<const W>(),
        .num_rows = args.x.sizes[0],
        .hidden = args.x.sizes[1],
        .eps = args.eps,
        .shift = args.zero_centered ? 1.0f : 0.0f,
    };
    const bool vectors = aligned16(params.out) && aligned16(params.x) && aligned16(params.weight) &&
                         aligned16(params.bias);
    dispatch_geometry<
        X>(params.hidden, vectors, kMaxForwardThreads, [&](Geometry g, auto vec, auto items) {
        const LaunchShape shape{
            .grid = dim3(static_cast<unsigned>(ceil_div(params.num_rows, g.rows_per_block))),
            .block = dim3(g.threads, g.rows_per_block),
            .stream = stream};
        const auto kernel =
            args.mean.present()
                ? norm_forward_kernel<X, W, decltype(vec)::value, decltype(items)::value, true>
                : norm_forward_kernel<X, W, decltype(vec)::value, decltype(items)::value, false>;
        launch(kernel, shape, params);
    });
}

// Rows of partial sums: a few blocks for each multiprocessor, never more than rows.
std::int64_t target_shares(std::int64_t num_rows) {
    return std::min(num_rows, 4 * num_multiprocessors());
}

template <class X, class W>
void launch_backward(const NormBackward& args, void* stream) {
    const BackwardParams<X, W> params{
        .dx = args.dx.as<X>(),
        .partial = args.workspace.as<float>(),
        .dout = args.dout.as<const X>(),
        .x = args.x.as<const X>(),
        .weight = args.weight.as<const W>(),
        .mean = args.mean.as<const float>(),
        .rstd = args.rstd.as<const float>(),
        .num_rows = args.x.sizes[0],
        .hidden = args.x.sizes[1],
        .shift = args.zero_centered ? 1.0f : 0.0f,
    };
    const bool vectors = aligned16(params.dx) && aligned16(params.dout) && aligned16(params.x) &&
                         aligned16(params.weight) && aligned16(params.partial);
    std::int64_t num_shares = 0;
    if (params.num_rows > 0) {
        dispatch_geometry<
            X>(params.hidden, vectors, kMaxBackwardThreads, [&](Geometry g, auto vec, auto items) {
            const std::int64_t blocks = ceil_div(target_shares(params.num_rows), g.rows_per_block);
            num_shares = blocks * g.rows_per_block;
            const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                                    .block = dim3(g.threads, g.rows_per_block),
                                    .stream = stream};
            const auto kernel =
                args.mean.present()
                    ? norm_backward_kernel<X, W, decltype(vec)::value, decltype(items)::value, true>
                    : norm_backward_kernel<X,
                                           W,
                                           decltype(vec)::value,
                                           decltype(items)::value,
                                           false>;
            launch(kernel, shape, params);
        });
    }
    const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div(params.hidden, kWarpSize)),
                                         args.dbias.present() ? 2u : 1u),
                            .block = dim3(kWarpSize, kReduceRows),
                            .stream = stream};
    launch(norm_reduce_kernel<W>,
           shape,
           args.dweight.as<W>(),
           args.dbias.as<W>(),
           params.partial,
           num_shares,
           params.hidden);
}

template <class Launcher>
void dispatch_dtypes(const TensorView& x, const TensorView& weight, const Launcher& launcher) {
    visit_norm_dtypes(x.dtype, weight.dtype, [&](auto x_tag, auto weight_tag) {
        launcher(TypeTag<typename DeviceType<typename decltype(x_tag)::type>::type>{},
                 TypeTag<typename DeviceType<typename decltype(weight_tag)::type>::type>{});
    });
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

void norm_forward(const NormForward& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    dispatch_dtypes(args.x, args.weight, [&](auto x_tag, auto weight_tag) {
        launch_forward<typename decltype(x_tag)::type, typename decltype(weight_tag)::type>(args,
                                                                                            stream);
    });
}

std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden) {
    // The last block may hold more rows than there are shares.
    return 2 * (target_shares(num_rows) + kMaxRowsPerBlock - 1) * hidden;
}

void norm_backward(const NormBackward& args, void* stream) {
    check(args);
    check_shape(args.workspace, {norm_backward_workspace(args.x.sizes[0], args.x.sizes[1])});
    if (args.x.sizes[1] == 0) return;
    dispatch_dtypes(args.x, args.weight, [&](auto x_tag, auto weight_tag) {
        launch_backward<typename decltype(x_tag)::type, typename decltype(weight_tag)::type>(
            args, stream);
    });
}

}  // namespace megacore::cuda
