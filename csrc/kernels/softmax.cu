// CUDA kernels of softmax.h.
//
// A block owns a row. Forward keeps a running maximum and a sum relative to it in every thread
// (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018), brings the threads'
// pairs to the largest maximum, and reads the row again, which is in the cache, to write it.
// 16-byte accesses where rows are aligned. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "core/check.h"
#include "core/math.h"
#include "kernels/launch.h"
#include "kernels/reduce.cuh"
#include "kernels/softmax.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kMaxThreads = 512;

template <class X>
struct ForwardParams {
    X* y;
    const X* x;
    const bool* mask;  // or null
    SoftmaxMaskStrides strides;
    SoftmaxRange range;
    std::int64_t heads;
    std::int64_t queries;
    std::int64_t columns;
    float scale;
};

template <class X>
struct BackwardParams {
    X* dx;
    const X* dy;
    const X* y;
    SoftmaxRange range;
    std::int64_t queries;
    std::int64_t columns;
    float scale;
};

// --- Kernels ------------------------------------------------------------------------------------

// Calls body(first column) for this thread's packs among the columns [begin, end).
template <int kVec, class Body>
__device__ __forceinline__ void for_packs(std::int64_t begin, std::int64_t end, const Body& body) {
    const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kVec;
    for (std::int64_t at = begin / kVec * kVec + static_cast<std::int64_t>(threadIdx.x) * kVec;
         at < end;
         at += step) {
        body(at);
    }
}

// Grid: rows.
template <class X, int kVec>
__global__ void __launch_bounds__(kMaxThreads) softmax_forward_kernel(const ForwardParams<X> p) {
    __shared__ float scratch[2][kWarpSize];
    const std::int64_t row = blockIdx.x;
    const std::int64_t query = row % p.queries;
    const std::int64_t head = row / p.queries;
    const std::int64_t begin = p.range.begin(query, p.columns);
    const std::int64_t end = p.range.end(query, p.columns);
    const X* x = p.x + row * p.columns;
    X* y = p.y + row * p.columns;
    const bool* mask = p.mask;
    if (mask != nullptr) {
        mask += head / p.heads * p.strides.batch + head % p.heads * p.strides.head +
                query * p.strides.query;
    }
    const auto score = [&](X value, std::int64_t column) {
        const bool hidden = column < begin || column >= end || (mask != nullptr && mask[column]);
        return hidden ? -INFINITY : widen(value) * p.scale;
    };
    float largest = -INFINITY;
    float total = 0.0f;
    for_packs<kVec>(begin, end, [&](std::int64_t at) {
        const auto pack = Pack<X, kVec>::load(x + at);
        float scores[kVec];
        float found = largest;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            scores[k] = score(pack.elements[k], at + k);
            found = fmaxf(found, scores[k]);
        }
        // All hidden so far: nothing to bring to another maximum, and nothing to add.
        if (found == -INFINITY) return;
        total *= expf(largest - found);
        largest = found;
#pragma unroll
        for (int k = 0; k < kVec; ++k) total += expf(scores[k] - largest);
    });
    const float row_largest = row_max(largest, scratch[0]);
    const bool nothing = row_largest == -INFINITY;
    total = row_sum(largest == -INFINITY ? 0.0f : total * expf(largest - row_largest), scratch[1]);
    const float factor = 1.0f / total;
    for_packs<kVec>(0, p.columns, [&](std::int64_t at) {
        Pack<X, kVec> pack{};
        if (!nothing && at + kVec > begin && at < end) {
            pack = Pack<X, kVec>::load(x + at);
#pragma unroll
            for (int k = 0; k < kVec; ++k) {
                const float value = expf(score(pack.elements[k], at + k) - row_largest);
                pack.elements[k] = narrow<X>(value * factor);
            }
        }
        pack.store(y + at);
    });
}

// Grid: rows.
template <class X, int kVec>
__global__ void __launch_bounds__(kMaxThreads) softmax_backward_kernel(const BackwardParams<X> p) {
    __shared__ float scratch[kWarpSize];
    const std::int64_t row = blockIdx.x;
    const std::int64_t query = row % p.queries;
    const std::int64_t begin = p.range.begin(query, p.columns);
    const std::int64_t end = p.range.end(query, p.columns);
    const X* y = p.y + row * p.columns;
    const X* dy = p.dy + row * p.columns;
    float sum = 0.0f;
    for_packs<kVec>(begin, end, [&](std::int64_t at) {
        const auto weights = Pack<X, kVec>::load(y + at);
        const auto gradients = Pack<X, kVec>::load(dy + at);
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            if (at + k < begin || at + k >= end) continue;
            sum = fmaf(widen(weights.elements[k]), widen(gradients.elements[k]), sum);
        }
    });
    sum = row_sum(sum, scratch);
    for_packs<kVec>(0, p.columns, [&](std::int64_t at) {
        Pack<X, kVec> out{};
        if (at + kVec > begin && at < end) {
            const auto weights = Pack<X, kVec>::load(y + at);
            const auto gradients = Pack<X, kVec>::load(dy + at);
#pragma unroll
            for (int k = 0; k < kVec; ++k) {
                if (at + k < begin || at + k >= end) continue;
                const float weight = widen(weights.elements[k]) * p.scale;
                out.elements[k] = narrow<X>(weight * (widen(gradients.elements[k]) - sum));
            }
        }
        out.store(p.dx + row * p.columns + at);
    });
}

// --- Launchers ----------------------------------------------------------------------------------

// Calls body(vec, shape) with an integral constant.
template <class X, class Body>
void dispatch(const TensorView& x, bool vectors, void* stream, const Body& body) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(X));
    const std::int64_t columns = x.sizes[3];
    const std::int64_t rows = x.numel() / columns;
    MEGACORE_CHECK(rows < (std::int64_t{1} << 31), "softmax: at most 2^31 - 1 rows, found ", rows);
    const auto with_width = [&](auto vec) {
        const std::int64_t threads = round_up(ceil_div(columns, vec()), kWarpSize);
        body(vec,
             LaunchShape{
                 .grid = dim3(static_cast<unsigned>(rows)),
                 .block = dim3(static_cast<unsigned>(std::min<std::int64_t>(threads, kMaxThreads))),
                 .stream = stream});
    };
    if (vectors && columns % kWide == 0) {
        with_width(std::integral_constant<int, kWide>{});
    } else {
        with_width(std::integral_constant<int, 1>{});
    }
}

template <class X>
void launch_forward(const SoftmaxForward& args, void* stream) {
    const ForwardParams<X> params{.y = args.y.as<X>(),
                                  .x = args.x.as<const X>(),
                                  .mask = args.mask.as<const bool>(),
                                  .strides = SoftmaxMaskStrides::of(args.mask),
                                  .range = args.range,
                                  .heads = args.x.sizes[1],
                                  .queries = args.x.sizes[2],
                                  .columns = args.x.sizes[3],
                                  .scale = static_cast<float>(args.scale)};
    const bool vectors = aligned16(params.x) && aligned16(params.y);
    dispatch<X>(args.x, vectors, stream, [&](auto vec, const LaunchShape& shape) {
        launch(softmax_forward_kernel<X, vec()>, shape, params);
    });
}

template <class X>
void launch_backward(const SoftmaxBackward& args, void* stream) {
    const BackwardParams<X> params{.dx = args.dx.as<X>(),
                                   .dy = args.dy.as<const X>(),
                                   .y = args.y.as<const X>(),
                                   .range = args.range,
                                   .queries = args.y.sizes[2],
                                   .columns = args.y.sizes[3],
                                   .scale = static_cast<float>(args.scale)};
    const bool vectors = aligned16(params.dx) && aligned16(params.dy) && aligned16(params.y);
    dispatch<X>(args.y, vectors, stream, [&](auto vec, const LaunchShape& shape) {
        launch(softmax_backward_kernel<X, vec()>, shape, params);
    });
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

void softmax_forward(const SoftmaxForward& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        launch_forward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

void softmax_backward(const SoftmaxBackward& args, void* stream) {
    check(args);
    if (args.y.numel() == 0) return;
    visit_float_dtype(args.y.dtype, [&](auto tag) {
        launch_backward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
