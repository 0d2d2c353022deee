// CUDA kernel of dropout_add.h.
//
// A thread takes kVec neighbouring elements with the random numbers of kVec / 4 counters; the grid
// strides over the tensor. Elements behind the last whole vector, and all of an unaligned tensor,
// go one a thread, each with the numbers of its counter to itself. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/math.h"
#include "kernels/dropout_add.h"
#include "kernels/launch.h"
#include "kernels/philox.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr std::int64_t kBlocksPerMultiprocessor = 8;

template <class T>
struct Params {
    T* out;
    const T* x;
    const T* residual;  // or null
    std::int64_t size;
    std::uint64_t seed;
    DropoutFactors factors;
};

// --- Kernel -------------------------------------------------------------------------------------

template <class T>
__device__ __forceinline__ float dropped(const Params<T>& p, T x, std::uint32_t number) {
    return (number >> 8) < p.factors.threshold ? 0.0f : widen(x) * p.factors.scale;
}

template <class T, int kVec>
__global__ void __launch_bounds__(kThreads) dropout_add_kernel(const Params<T> p) {
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    std::int64_t first_single = 0;
    if constexpr (kVec > 1) {
        const std::int64_t vectors = p.size / kVec;
        first_single = vectors * kVec;
        for (std::int64_t i = thread; i < vectors; i += stride) {
            const std::int64_t at = i * kVec;
            const auto x = Pack<T, kVec>::load(p.x + at);
            Pack<T, kVec> residual{};
            if (p.residual != nullptr) residual = Pack<T, kVec>::load(p.residual + at);
            Pack<T, kVec> out;
#pragma unroll
            for (int four = 0; four < kVec / 4; ++four) {
                const Philox philox = Philox::at(p.seed, static_cast<std::uint64_t>(at) / 4 + four);
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int lane = 4 * four + k;
                    const float kept = dropped(p, x.elements[lane], philox.words[k]);
                    const float sum =
                        p.residual != nullptr ? widen(residual.elements[lane]) + kept : kept;
                    out.elements[lane] = narrow<T>(sum);
                }
            }
            out.store(p.out + at);
        }
    }
    for (std::int64_t at = first_single + thread; at < p.size; at += stride) {
        const Philox philox = Philox::at(p.seed, static_cast<std::uint64_t>(at) / 4);
        const std::uint32_t number = at % 4 == 0   ? philox.words[0]
                                     : at % 4 == 1 ? philox.words[1]
                                     : at % 4 == 2 ? philox.words[2]
                                                   : philox.words[3];
        const float kept = dropped(p, p.x[at], number);
        p.out[at] = narrow<T>(p.residual != nullptr ? widen(p.residual[at]) + kept : kept);
    }
}

// --- Launcher -----------------------------------------------------------------------------------

template <class T>
void launch_dropout_add(const DropoutAdd& args, void* stream) {
    const Params<T> params{.out = args.out.as<T>(),
                           .x = args.x.as<const T>(),
                           .residual = args.residual.as<const T>(),
                           .size = args.x.sizes[0],
                           .seed = args.seed,
                           .factors = DropoutFactors::of(args)};
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    const bool vectors = aligned16(params.out) && aligned16(params.x) && aligned16(params.residual);
    const std::int64_t items = ceil_div(params.size, vectors ? kWide : 1);
    const std::int64_t blocks =
        std::min(ceil_div(items, kThreads), kBlocksPerMultiprocessor * num_multiprocessors());
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .stream = stream};
    launch(vectors ? dropout_add_kernel<T, kWide> : dropout_add_kernel<T, 1>, shape, params);
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void dropout_add(const DropoutAdd& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        launch_dropout_add<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
