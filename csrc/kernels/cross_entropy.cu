// CUDA kernels of cross_entropy.h.
//
// A block owns a row. Forward keeps a running maximum and a sum relative to it in every thread
// (Milakov, Gimelshein, "Online normalizer calculation for softmax", 2018), so that the row is read
// once; the threads' pairs are then brought to the largest maximum and added. Backward moves every
// element in and out once. 16-byte accesses where rows are aligned. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "core/math.h"
#include "kernels/cross_entropy.h"
#include "kernels/launch.h"
#include "kernels/reduce.cuh"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kMaxThreads = 512;

template <class X>
struct ForwardParams {
    float* largest;  // [M]
    float* total;    // [M]
    float* chosen;   // [M]
    float* sum;      // [M] or null
    const X* logits;
    const std::int64_t* labels;
    std::int64_t columns;
    std::int64_t first_column;
};

template <class X>
struct BackwardParams {
    X* dlogits;
    const X* logits;
    const std::int64_t* labels;
    const float* largest;   // [M]
    const float* factor;    // [M]
    const float* at_label;  // [M]
    const float* uniform;   // [M] or null
    std::int64_t columns;
    std::int64_t first_column;
};

// --- Kernels ------------------------------------------------------------------------------------

// Grid: rows.
template <class X, int kVec>
__global__ void __launch_bounds__(kMaxThreads)
    cross_entropy_forward_kernel(const ForwardParams<X> p) {
    __shared__ float scratch[3][kWarpSize];
    const std::int64_t row = blockIdx.x;
    const X* x = p.logits + row * p.columns;
    float largest = -INFINITY;
    float total = 0.0f;
    float sum = 0.0f;
    for (std::int64_t at = static_cast<std::int64_t>(threadIdx.x) * kVec; at < p.columns;
         at += static_cast<std::int64_t>(blockDim.x) * kVec) {
        const auto pack = Pack<X, kVec>::load(x + at);
        float values[kVec];
        float found = largest;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            values[k] = widen(pack.elements[k]);
            found = fmaxf(found, values[k]);
            sum += values[k];
        }
        // All minus infinity so far: nothing to bring to another maximum, and nothing to add.
        if (found == -INFINITY) continue;
        total *= expf(largest - found);
        largest = found;
#pragma unroll
        for (int k = 0; k < kVec; ++k) total += expf(values[k] - largest);
    }
    const float row_largest = row_max(largest, scratch[0]);
    const bool nothing = largest == -INFINITY;
    total = row_sum(nothing ? 0.0f : total * expf(largest - row_largest), scratch[1]);
    if (p.sum != nullptr) sum = row_sum(sum, scratch[2]);
    if (threadIdx.x == 0) {
        p.largest[row] = row_largest;
        p.total[row] = total;
        const std::int64_t label = p.labels[row] - p.first_column;
        p.chosen[row] = label >= 0 && label < p.columns ? widen(x[label]) : 0.0f;
        if (p.sum != nullptr) p.sum[row] = sum;
    }
}

// Grid: rows, pieces of blockDim.x * kVec columns.
template <class X, int kVec>
__global__ void __launch_bounds__(kMaxThreads)
    cross_entropy_backward_kernel(const BackwardParams<X> p) {
    const std::int64_t row = blockIdx.x;
    const std::int64_t at =
        (static_cast<std::int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kVec;
    if (at >= p.columns) return;
    const float largest = p.largest[row];
    const float factor = p.factor[row];
    const float uniform = p.uniform == nullptr ? 0.0f : p.uniform[row];
    const std::int64_t label = p.labels[row] - p.first_column - at;
    const float at_label = label >= 0 && label < kVec ? p.at_label[row] : 0.0f;
    auto pack = Pack<X, kVec>::load(p.logits + row * p.columns + at);
#pragma unroll
    for (int k = 0; k < kVec; ++k) {
        float value = fmaf(expf(widen(pack.elements[k]) - largest), factor, -uniform);
        if (label == k) value -= at_label;
        pack.elements[k] = narrow<X>(value);
    }
    pack.store(p.dlogits + row * p.columns + at);
}

// --- Launchers ----------------------------------------------------------------------------------

// Calls body(vec, threads) with an integral constant.
template <class X, class Body>
void dispatch(std::int64_t columns, bool vectors, const Body& body) {
    constexpr int kWide = 16 / static_cast<int>(sizeof(X));
    const auto with_width = [&](auto vec) {
        const std::int64_t threads = round_up(ceil_div(columns, vec()), kWarpSize);
        body(vec, static_cast<int>(std::min<std::int64_t>(threads, kMaxThreads)));
    };
    if (vectors && columns % kWide == 0) {
        with_width(std::integral_constant<int, kWide>{});
    } else {
        with_width(std::integral_constant<int, 1>{});
    }
}

template <class X>
void launch_forward(const CrossEntropyForward& args, void* stream) {
    const ForwardParams<X> params{.largest = args.largest.as<float>(),
                                  .total = args.total.as<float>(),
                                  .chosen = args.chosen.as<float>(),
                                  .sum = args.sum.as<float>(),
                                  .logits = args.logits.as<const X>(),
                                  .labels = args.labels.as<const std::int64_t>(),
                                  .columns = args.logits.sizes[1],
                                  .first_column = args.first_column};
    dispatch<X>(params.columns, aligned16(params.logits), [&](auto vec, int threads) {
        const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.logits.sizes[0])),
                                .block = dim3(threads),
                                .stream = stream};
        launch(cross_entropy_forward_kernel<X, vec()>, shape, params);
    });
}

template <class X>
void launch_backward(const CrossEntropyBackward& args, void* stream) {
    const BackwardParams<X> params{.dlogits = args.dlogits.as<X>(),
                                   .logits = args.logits.as<const X>(),
                                   .labels = args.labels.as<const std::int64_t>(),
                                   .largest = args.largest.as<const float>(),
                                   .factor = args.factor.as<const float>(),
                                   .at_label = args.at_label.as<const float>(),
                                   .uniform = args.uniform.as<const float>(),
                                   .columns = args.logits.sizes[1],
                                   .first_column = args.first_column};
    const bool vectors = aligned16(params.logits) && aligned16(params.dlogits);
    dispatch<X>(params.columns, vectors, [&](auto vec, int threads) {
        const std::int64_t pieces = ceil_div(params.columns, std::int64_t{threads} * vec());
        const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.logits.sizes[0]),
                                             static_cast<unsigned>(pieces)),
                                .block = dim3(threads),
                                .stream = stream};
        launch(cross_entropy_backward_kernel<X, vec()>, shape, params);
    });
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

void cross_entropy_forward(const CrossEntropyForward& args, void* stream) {
    check(args);
    if (args.logits.numel() == 0) return;
    visit_float_dtype(args.logits.dtype, [&](auto tag) {
        launch_forward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

void cross_entropy_backward(const CrossEntropyBackward& args, void* stream) {
    check(args);
    if (args.logits.numel() == 0) return;
    visit_float_dtype(args.logits.dtype, [&](auto tag) {
        launch_backward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
