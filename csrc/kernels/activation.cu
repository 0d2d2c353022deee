// CUDA kernels of activation.h.
//
// A thread owns kVec neighbouring columns (16-byte accesses where rows are aligned) and walks down
// a chunk of rows; in backward it keeps the bias gradient of its columns in registers and writes it
// to the chunk's row of the workspace. Bound by memory: forward moves 2 elements per element of x
// (1.5 with a gate), backward 3 (2.5).
#include <cuda_runtime.h>

#include <type_traits>

#include "kernels/activation.h"
#include "kernels/column_sums.cuh"
#include "kernels/launch.h"
#include "kernels/row_chunks.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kThreads = 128;

template <class X>
struct Params {
    X* result;       // forward: out [M, F]; backward: dx [M, W]
    float* partial;  // backward with a bias: [chunks, W]
    const X* x;      // [M, W]
    const X* bias;   // [W] or null
    const X* dout;   // backward: [M, F]
    std::int64_t num_rows;
    std::int64_t rows_per_chunk;
    std::int64_t inner;  // F
    Activation activation;
};

// --- Device helpers -----------------------------------------------------------------------------

struct ValueAndSlope {
    float value;
    float slope;
};

__device__ __forceinline__ ValueAndSlope gated_by_sigmoid(float z, float y, float dy) {
    const float e = expf(-y);
    const float s = 1.0f / (1.0f + e);
    // 1 - s, with its precision where s is nearly 1; e is infinite where s is 0.
    const float rest = s == 0.0f ? 1.0f : e * s;
    return {z * s, fmaf(z * s * rest, dy, s)};
}

__device__ __forceinline__ ValueAndSlope apply(Activation activation, float z) {
    constexpr float kTwo = 1.5957691216f;  // 2 sqrt(2 / pi)
    switch (activation) {
        case Activation::kGeluTanh:
            // (1 + tanh(a)) / 2 = sigmoid(2 a)
            return gated_by_sigmoid(z,
                                    z * fmaf(z * z, kTwo * 0.044715f, kTwo),
                                    fmaf(z * z, 3.0f * kTwo * 0.044715f, kTwo));
        case Activation::kGeluErf: {
            const float below = 0.5f * erfcf(z * -0.7071067812f);
            const float density = 0.3989422804f * expf(-0.5f * z * z);
            return {z * below, fmaf(z, density, below)};
        }
        case Activation::kGeluQuick:
            return gated_by_sigmoid(z, z * 1.702f, 1.702f);
        case Activation::kSilu:
            return gated_by_sigmoid(z, z, 1.0f);
        case Activation::kSquaredRelu:
            break;
    }
    const float positive = z < 0.0f ? 0.0f : z;  // NaN stays NaN
    return {positive * positive, positive + positive};
}

template <class X, int kVec>
struct Floats {
    float values[kVec];

    // The elements at `source`, plus those at `bias` unless it is null.
    static __device__ __forceinline__ Floats load(const X* source, const X* bias) {
        const auto elements = Pack<X, kVec>::load(source);
        Pack<X, kVec> added{};
        if (bias != nullptr) added = Pack<X, kVec>::load(bias);
        Floats result;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            result.values[k] = widen(elements.elements[k]);
            if (bias != nullptr) result.values[k] += widen(added.elements[k]);
        }
        return result;
    }
    __device__ __forceinline__ void store(X* target) const {
        Pack<X, kVec> elements;
#pragma unroll
        for (int k = 0; k < kVec; ++k) elements.elements[k] = narrow<X>(values[k]);
        elements.store(target);
    }
};

// --- Kernels ------------------------------------------------------------------------------------

// Grid: columns / (threads * kVec), chunks of rows.
template <class X, int kVec, bool kGated>
__global__ void __launch_bounds__(kThreads) activation_forward_kernel(const Params<X> p) {
    const std::int64_t column =
        (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
    if (column >= p.inner) return;
    const std::int64_t width = kGated ? 2 * p.inner : p.inner;
    const std::int64_t first = blockIdx.y * p.rows_per_chunk;
    const std::int64_t end =
        first + p.rows_per_chunk < p.num_rows ? first + p.rows_per_chunk : p.num_rows;
    const X* bias = p.bias == nullptr ? nullptr : p.bias + column;
    for (std::int64_t row = first; row < end; ++row) {
        const X* x = p.x + row * width + column;
        auto out = Floats<X, kVec>::load(x, bias);
#pragma unroll
        for (int k = 0; k < kVec; ++k) out.values[k] = apply(p.activation, out.values[k]).value;
        if constexpr (kGated) {
            const auto gate =
                Floats<X, kVec>::load(x + p.inner, bias == nullptr ? nullptr : bias + p.inner);
#pragma unroll
            for (int k = 0; k < kVec; ++k) out.values[k] *= gate.values[k];
        }
        out.store(p.result + row * p.inner + column);
    }
}

template <class X, int kVec, bool kGated>
__global__ void __launch_bounds__(kThreads) activation_backward_kernel(const Params<X> p) {
    const std::int64_t column =
        (static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kVec;
    if (column >= p.inner) return;
    const std::int64_t width = kGated ? 2 * p.inner : p.inner;
    const std::int64_t first = blockIdx.y * p.rows_per_chunk;
    const std::int64_t end =
        first + p.rows_per_chunk < p.num_rows ? first + p.rows_per_chunk : p.num_rows;
    const X* bias = p.bias == nullptr ? nullptr : p.bias + column;
    Pack<float, kVec> sum{};
    Pack<float, kVec> gate_sum{};
    for (std::int64_t row = first; row < end; ++row) {
        const X* x = p.x + row * width + column;
        X* dx = p.result + row * width + column;
        auto z = Floats<X, kVec>::load(x, bias);
        const auto dout = Floats<X, kVec>::load(p.dout + row * p.inner + column, nullptr);
        Floats<X, kVec> gate{};
        if constexpr (kGated) {
            gate = Floats<X, kVec>::load(x + p.inner, bias == nullptr ? nullptr : bias + p.inner);
        }
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            const ValueAndSlope f = apply(p.activation, z.values[k]);
            z.values[k] = dout.values[k] * (kGated ? gate.values[k] * f.slope : f.slope);
            sum.elements[k] += z.values[k];
            if constexpr (kGated) {
                gate.values[k] = dout.values[k] * f.value;
                gate_sum.elements[k] += gate.values[k];
            }
        }
        z.store(dx);
        if constexpr (kGated) gate.store(dx + p.inner);
    }
    if (bias == nullptr) return;
    float* partial = p.partial + blockIdx.y * width + column;
    sum.store(partial);
    if constexpr (kGated) gate_sum.store(partial + p.inner);
}

// --- Launchers ----------------------------------------------------------------------------------

RowChunks chunks_of(std::int64_t num_rows) { return row_chunks(num_rows, 4, 256); }

// Calls body(vec, gated) with integral constants and the shape of the launch.
template <class X, class Body>
void dispatch(const Params<X>& p, bool vectors, bool gated, void* stream, const Body& body) {
    const auto with_width = [&](auto vec) {
        const std::int64_t items = ceil_div(p.inner, vec());
        const LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div(items, kThreads)),
                                             static_cast<unsigned>(chunks_of(p.num_rows).count)),
                                .block = dim3(kThreads),
                                .stream = stream};
        if (gated) {
            body(vec, std::true_type{}, shape);
        } else {
            body(vec, std::false_type{}, shape);
        }
    };
    constexpr int kWide = 16 / static_cast<int>(sizeof(X));
    if (vectors && p.inner % kWide == 0) {
        with_width(std::integral_constant<int, kWide>{});
    } else {
        with_width(std::integral_constant<int, 1>{});
    }
}

template <class X>
void launch_forward(const ActivationForward& args, void* stream) {
    const std::int64_t num_rows = args.x.sizes[0];
    const Params<X> params{.result = args.out.as<X>(),
                           .x = args.x.as<const X>(),
                           .bias = args.bias.as<const X>(),
                           .num_rows = num_rows,
                           .rows_per_chunk = chunks_of(num_rows).rows,
                           .inner = args.out.sizes[1],
                           .activation = args.activation};
    const bool vectors = aligned16(params.result) && aligned16(params.x) && aligned16(params.bias);
    dispatch(params, vectors, args.gated, stream, [&](auto vec, auto gated, const auto& shape) {
        launch(activation_forward_kernel<X, vec(), gated()>, shape, params);
    });
}

template <class X>
void launch_backward(const ActivationBackward& args, void* stream) {
    const std::int64_t num_rows = args.x.sizes[0];
    const Params<X> params{.result = args.dx.as<X>(),
                           .partial = args.workspace.as<float>(),
                           .x = args.x.as<const X>(),
                           .bias = args.bias.as<const X>(),
                           .dout = args.dout.as<const X>(),
                           .num_rows = num_rows,
                           .rows_per_chunk = chunks_of(num_rows).rows,
                           .inner = args.dout.sizes[1],
                           .activation = args.activation};
    if (num_rows > 0) {
        const bool vectors = aligned16(params.result) && aligned16(params.x) &&
                             aligned16(params.bias) && aligned16(params.dout) &&
                             aligned16(params.partial);
        dispatch(params, vectors, args.gated, stream, [&](auto vec, auto gated, const auto& shape) {
            launch(activation_backward_kernel<X, vec(), gated()>, shape, params);
        });
    }
    if (args.bias.present()) {
        launch_column_sums(
            args.dbias.as<X>(), params.partial, chunks_of(num_rows).count, args.x.sizes[1], stream);
    }
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

void activation_forward(const ActivationForward& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        launch_forward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width) {
    return chunks_of(num_rows).count * width;
}

void activation_backward(const ActivationBackward& args, void* stream) {
    check(args);
    const std::int64_t width = args.x.sizes[1];
    if (args.bias.present()) {
        check_shape(args.workspace, {activation_backward_workspace(args.x.sizes[0], width)});
    }
    if (width == 0) return;
    visit_float_dtype(args.x.dtype, [&](auto tag) {
        launch_backward<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
