// CUDA kernel of sgd.h.
//
// Every thread owns four neighbouring elements (16-byte accesses) or, where a buffer is not aligned
// or at the end, one; the grid strides over the buffers. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>

#include "core/math.h"
#include "kernels/launch.h"
#include "kernels/sgd.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kVec = 4;
constexpr std::int64_t kBlocksPerMultiprocessor = 8;

template <class Copy>
struct Params {
    float* param;            // [N]
    float* momentum_buffer;  // [N] or null
    Copy* model_param;       // [N] or null
    const float* grad;       // [N]
    std::int64_t size;
    float grad_scale;
    float weight_decay;
    float momentum;
    float lr;
};

// --- Kernel -------------------------------------------------------------------------------------

template <class Copy, int kWidth>
__device__ __forceinline__ void update(const Params<Copy>& a, std::int64_t at) {
    auto param = Pack<float, kWidth>::load(a.param + at);
    const auto grad = Pack<float, kWidth>::load(a.grad + at);
    Pack<float, kWidth> step{};
    if (a.momentum_buffer != nullptr) step = Pack<float, kWidth>::load(a.momentum_buffer + at);
    Pack<Copy, kWidth> copy;
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
        float& p = param.elements[k];
        const float g = fmaf(a.weight_decay, p, grad.elements[k] * a.grad_scale);
        step.elements[k] = fmaf(a.momentum, step.elements[k], g);
        p = fmaf(-a.lr, step.elements[k], p);
        copy.elements[k] = narrow<Copy>(p);
    }
    param.store(a.param + at);
    if (a.momentum_buffer != nullptr) step.store(a.momentum_buffer + at);
    if (a.model_param != nullptr) copy.store(a.model_param + at);
}

template <class Copy, int kWidth>
__global__ void __launch_bounds__(kThreads) sgd_kernel(const Params<Copy> a) {
    const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
    const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
    const std::int64_t whole = a.size / kWidth;
    for (std::int64_t i = first; i < whole; i += stride) update<Copy, kWidth>(a, i * kWidth);
    // The last size % kWidth elements, one a thread.
    const std::int64_t at = whole * kWidth + first;
    if (at < a.size) update<Copy, 1>(a, at);
}

// --- Launcher -----------------------------------------------------------------------------------

template <class Copy>
void launch_step(const SgdStep& args, void* stream) {
    const Params<Copy> params{
        .param = args.param.as<float>(),
        .momentum_buffer = args.momentum_buffer.as<float>(),
        .model_param = args.model_param.as<Copy>(),
        .grad = args.grad.as<const float>(),
        .size = args.param.sizes[0],
        .grad_scale = static_cast<float>(args.grad_scale),
        .weight_decay = static_cast<float>(args.weight_decay),
        .momentum = static_cast<float>(args.momentum),
        .lr = static_cast<float>(args.lr),
    };
    const bool vectors = aligned16(params.param) && aligned16(params.momentum_buffer) &&
                         aligned16(params.model_param) && aligned16(params.grad);
    const std::int64_t items = ceil_div(params.size, vectors ? kVec : 1);
    const std::int64_t blocks =
        std::min(ceil_div(items, kThreads), kBlocksPerMultiprocessor * num_multiprocessors());
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(blocks)), .block = dim3(kThreads), .stream = stream};
    launch(vectors ? sgd_kernel<Copy, kVec> : sgd_kernel<Copy, 1>, shape, params);
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void sgd_step(const SgdStep& args, void* stream) {
    check(args);
    if (args.param.numel() == 0) return;
    const DType copy = args.model_param.present() ? args.model_param.dtype : DType::kFloat32;
    visit_float_dtype(copy, [&](auto tag) {
        launch_step<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
