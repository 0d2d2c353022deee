// CUDA kernel of embedding.h.
//
// A block owns a row of the table: it finds the row's tokens by bisection and keeps the sums of its
// columns in registers. 16-byte accesses where rows are aligned. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "core/math.h"
#include "kernels/embedding.h"
#include "kernels/launch.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kMaxThreads = 128;

template <class T, class Out>
struct Params {
    Out* dtable;                 // [V, H]
    const T* dout;               // [M, H]
    const std::int64_t* sorted;  // [M]
    const std::int64_t* order;   // [M]
    std::int64_t num_tokens;
    std::int64_t hidden;
};

// --- Kernel -------------------------------------------------------------------------------------

// Grid: rows of the table. kAdd: rows without tokens are left, the others added to.
template <class T, class Out, int kVec, bool kAdd>
__global__ void __launch_bounds__(kMaxThreads) embedding_backward_kernel(const Params<T, Out> p) {
    const std::int64_t row = blockIdx.x;
    std::int64_t first = 0;
    for (std::int64_t end = p.num_tokens; first < end;) {
        const std::int64_t middle = first + (end - first) / 2;
        if (p.sorted[middle] < row) {
            first = middle + 1;
        } else {
            end = middle;
        }
    }
    if (kAdd && (first == p.num_tokens || p.sorted[first] != row)) return;
    for (std::int64_t column = static_cast<std::int64_t>(threadIdx.x) * kVec; column < p.hidden;
         column += static_cast<std::int64_t>(blockDim.x) * kVec) {
        float sums[kVec] = {};
        for (std::int64_t at = first; at < p.num_tokens && p.sorted[at] == row; ++at) {
            const auto pack = Pack<T, kVec>::load(p.dout + p.order[at] * p.hidden + column);
#pragma unroll
            for (int k = 0; k < kVec; ++k) sums[k] += widen(pack.elements[k]);
        }
        Out* const target = p.dtable + row * p.hidden + column;
        Pack<Out, kVec> result;
        if constexpr (kAdd) {
            result = Pack<Out, kVec>::load(target);
#pragma unroll
            for (int k = 0; k < kVec; ++k) sums[k] = widen(result.elements[k]) + sums[k];
        }
#pragma unroll
        for (int k = 0; k < kVec; ++k) result.elements[k] = narrow<Out>(sums[k]);
        result.store(target);
    }
}

// --- Launcher -----------------------------------------------------------------------------------

template <class T, class Out, bool kAdd>
void launch_backward(const EmbeddingBackward& args, void* stream) {
    const Params<T, Out> params{.dtable = args.dtable.as<Out>(),
                                .dout = args.dout.as<const T>(),
                                .sorted = args.sorted.as<const std::int64_t>(),
                                .order = args.order.as<const std::int64_t>(),
                                .num_tokens = args.dout.sizes[0],
                                .hidden = args.dtable.sizes[1]};
    const auto with_width = [&](auto vec) {
        const std::int64_t threads = round_up(ceil_div(params.hidden, vec()), 32);
        const LaunchShape shape{
            .grid = dim3(static_cast<unsigned>(args.dtable.sizes[0])),
            .block = dim3(static_cast<unsigned>(std::min<std::int64_t>(threads, kMaxThreads))),
            .stream = stream};
        launch(embedding_backward_kernel<T, Out, vec(), kAdd>, shape, params);
    };
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    if (aligned16(params.dtable) && aligned16(params.dout) && params.hidden % kWide == 0) {
        with_width(std::integral_constant<int, kWide>{});
    } else {
        with_width(std::integral_constant<int, 1>{});
    }
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void embedding_backward(const EmbeddingBackward& args, void* stream) {
    check(args);
    if (args.dtable.numel() == 0) return;
    visit_float_dtype(args.dout.dtype, [&](auto tag) {
        using T = typename DeviceType<typename decltype(tag)::type>::type;
        if (args.accumulate) {
            launch_backward<T, float, true>(args, stream);
        } else {
            launch_backward<T, T, false>(args, stream);
        }
    });
}

}  // namespace megacore::cuda
