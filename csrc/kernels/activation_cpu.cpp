// CPU kernels of activation.h, compiled once per instruction set.
//
// One pass over the rows; backward adds the bias gradient of a chunk of rows into a row of the
// workspace, and a second loop adds the chunks in order. Bound by memory: forward moves 2 elements
// per element of x (1.5 with a gate), backward 3 (2.5).
#include "kernels/activation_cpu.h"

#include "core/parallel_for.h"
#include "kernels/simd_math.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 8192;

struct ValueAndSlope {
    Vec value;
    Vec slope;
};

// z * sigmoid(y) with slope dy of y, as most of them are. 1 - sigmoid(y) is e^-y sigmoid(y), which
// keeps its precision where the sigmoid is nearly 1.
inline ValueAndSlope gated_by_sigmoid(Vec z, Vec y, Vec dy) {
    const Vec one = Vec::broadcast(1.0f);
    const Vec e = exp(Vec::zero() - y);
    const Vec s = one / (one + e);
    const Vec zs = z * s;
    return {zs, Vec::fma(zs * (e * s), dy, s)};
}

// f and its derivative; where only one is used, the compiler drops the rest.
template <Activation kActivation>
inline ValueAndSlope apply(Vec z) {
    if constexpr (kActivation == Activation::kGeluTanh) {
        // (1 + tanh(a)) / 2 = sigmoid(2 a)
        constexpr float kTwo = 1.5957691216f;  // 2 sqrt(2 / pi)
        const Vec square = z * z;
        const Vec y = z * Vec::fma(square, Vec::broadcast(kTwo * 0.044715f), Vec::broadcast(kTwo));
        const Vec dy =
            Vec::fma(square, Vec::broadcast(3.0f * kTwo * 0.044715f), Vec::broadcast(kTwo));
        return gated_by_sigmoid(z, y, dy);
    } else if constexpr (kActivation == Activation::kGeluErf) {
        const Normal n = normal(z);
        return {z * n.below, Vec::fma(z, n.density, n.below)};
    } else if constexpr (kActivation == Activation::kGeluQuick) {
        const Vec factor = Vec::broadcast(1.702f);
        return gated_by_sigmoid(z, z * factor, factor);
    } else if constexpr (kActivation == Activation::kSilu) {
        return gated_by_sigmoid(z, z, Vec::broadcast(1.0f));
    } else {
        // Written so that NaN stays NaN.
        const Vec positive = Vec::if_less(z, Vec::zero(), Vec::zero(), z);
        return {positive * positive, positive + positive};
    }
}

template <class Body>
void visit_activation(Activation activation, const Body& body) {
    switch (activation) {
        case Activation::kGeluTanh:
            return body(std::integral_constant<Activation, Activation::kGeluTanh>{});
        case Activation::kGeluErf:
            return body(std::integral_constant<Activation, Activation::kGeluErf>{});
        case Activation::kGeluQuick:
            return body(std::integral_constant<Activation, Activation::kGeluQuick>{});
        case Activation::kSilu:
            return body(std::integral_constant<Activation, Activation::kSilu>{});
        case Activation::kSquaredRelu:
            return body(std::integral_constant<Activation, Activation::kSquaredRelu>{});
    }
}

template <Activation kActivation, class X>
void forward_rows(const ActivationForward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t width = args.x.sizes[1];
    const std::int64_t inner = args.out.sizes[1];
    const X* bias = args.bias.as<const X>();
    for (std::int64_t row = begin; row < end; ++row) {
        const X* x = args.x.as<const X>() + row * width;
        X* out = args.out.as<X>() + row * inner;
        for_each_vec(inner, [&](auto load, auto store) {
            const auto z = [&](std::int64_t at) {
                return bias == nullptr ? load(x + at) : load(x + at) + load(bias + at);
            };
            const Vec value = apply<kActivation>(z(0)).value;
            store(out, args.gated ? value * z(inner) : value);
        });
    }
}

template <Activation kActivation, class X>
void backward_row(const ActivationBackward& args, std::int64_t row, float* dbias_sum) {
    const std::int64_t width = args.x.sizes[1];
    const std::int64_t inner = args.dout.sizes[1];
    const X* bias = args.bias.as<const X>();
    const X* x = args.x.as<const X>() + row * width;
    const X* dout = args.dout.as<const X>() + row * inner;
    X* dx = args.dx.as<X>() + row * width;
    for_each_vec(inner, [&](auto load, auto store) {
        const auto z = [&](std::int64_t at) {
            return bias == nullptr ? load(x + at) : load(x + at) + load(bias + at);
        };
        const auto give = [&](std::int64_t at, Vec gradient) {
            store(dx + at, gradient);
            if (dbias_sum != nullptr) store(dbias_sum + at, load(dbias_sum + at) + gradient);
        };
        const ValueAndSlope f = apply<kActivation>(z(0));
        const Vec gradient = load(dout);
        if (args.gated) {
            give(0, gradient * z(inner) * f.slope);
            give(inner, gradient * f.value);
        } else {
            give(0, gradient * f.slope);
        }
    });
}

template <Activation kActivation, class X>
void backward_chunks(const ActivationBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t num_rows = args.x.sizes[0];
    const std::int64_t width = args.x.sizes[1];
    const RowChunks chunks = activation_chunks(num_rows);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
        float* dbias_sum = nullptr;
        if (args.bias.present()) {
            dbias_sum = args.workspace.as<float>() + chunk * width;
            std::memset(dbias_sum, 0, static_cast<std::size_t>(width) * sizeof(float));
        }
        const std::int64_t last = std::min((chunk + 1) * chunks.rows, num_rows);
        for (std::int64_t row = chunk * chunks.rows; row < last; ++row) {
            backward_row<kActivation, X>(args, row, dbias_sum);
        }
    }
}

template <class X>
void reduce_bias(const ActivationBackward& args) {
    const std::int64_t width = args.x.sizes[1];
    const std::int64_t count = activation_chunks(args.x.sizes[0]).count;
    const float* partial = args.workspace.as<const float>();
    X* dbias = args.dbias.as<X>();
    for_each_vec(width, [&](auto load, auto store) {
        Vec sum = Vec::zero();
        for (std::int64_t chunk = 0; chunk < count; ++chunk) {
            sum = sum + load(partial + chunk * width);
        }
        store(dbias, sum);
    });
}

void forward(const ActivationForward& args) {
    const std::int64_t grain = std::max<std::int64_t>(1, kGrainElements / args.x.sizes[1]);
    visit_activation(args.activation, [&](auto activation) {
        visit_float_dtype(args.x.dtype, [&](auto tag) {
            parallel_for(0, args.x.sizes[0], grain, [&](std::int64_t begin, std::int64_t end) {
                forward_rows<activation(), typename decltype(tag)::type>(args, begin, end);
            });
        });
    });
}

void backward(const ActivationBackward& args) {
    visit_activation(args.activation, [&](auto activation) {
        visit_float_dtype(args.x.dtype, [&](auto tag) {
            parallel_for(0,
                         activation_chunks(args.x.sizes[0]).count,
                         1,
                         [&](std::int64_t begin, std::int64_t end) {
                             backward_chunks<activation(), typename decltype(tag)::type>(
                                 args, begin, end);
                         });
        });
    });
    if (!args.bias.present()) return;
    visit_float_dtype(args.x.dtype,
                      [&](auto tag) { reduce_bias<typename decltype(tag)::type>(args); });
}

}  // namespace

extern const ActivationKernels activation_kernels;
const ActivationKernels activation_kernels{forward, backward};

}  // namespace megacore::cpu::MEGACORE_ISA
