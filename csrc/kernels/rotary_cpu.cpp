// CPU kernels of rotary.h, compiled once per instruction set.
//
// One pass over the heads: every lane is read once and written once. Bound by memory.
#include "kernels/rotary_cpu.h"

#include <algorithm>

#include "core/parallel_for.h"
#include "kernels/rotary_heads.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 16384;

// The angles of one token.
struct Angles {
    const float* cos;  // half-split: [dim / 2]; interleaved: [dim], every value twice
    const float* sin;  // interleaved: [dim], first minus and then plus every value
    Vec sign;          // half-split: of sin
    std::int64_t dim;
};

// Interleaved: (a, b) cos + (b, a) (-sin, sin).
template <class T>
void turn_interleaved(T* target, const T* source, const Angles& angles) {
    for_each_vec(angles.dim, [&](auto load, auto store) {
        const Vec x = load(source);
        store(target, Vec::fma(x, load(angles.cos), x.swapped_pairs() * load(angles.sin)));
    });
}

template <class T>
void turn_halves(T* target, const T* source, const Angles& angles) {
    const std::int64_t half = angles.dim / 2;
    for_each_vec(half, [&](auto load, auto store) {
        const Vec cos = load(angles.cos);
        const Vec sin = load(angles.sin) * angles.sign;
        const Vec a = load(source);
        const Vec b = load(source + half);
        store(target, Vec::fma(a, cos, Vec::zero() - b * sin));
        store(target + half, Vec::fma(b, cos, a * sin));
    });
}

// Repeats the angles of a token for turn_interleaved.
void interleave(const Rotary& args, std::int64_t row, float* cos, float* sin) {
    const std::int64_t half = args.cos.sizes[1];
    const float sign = args.backward ? -1.0f : 1.0f;
    for (std::int64_t i = 0; i < half; ++i) {
        const float value = args.sin.as<const float>()[row * half + i] * sign;
        cos[2 * i] = cos[2 * i + 1] = args.cos.as<const float>()[row * half + i];
        sin[2 * i] = -value;
        sin[2 * i + 1] = value;
    }
}

template <class T>
void turn_tokens(const Rotary& args, std::int64_t begin, std::int64_t end) {
    const auto heads = RotaryHeads<T>::of(args);
    const std::int64_t size = heads.head_size;
    const std::int64_t half = args.cos.sizes[1];
    float cos[kMaxRotaryDim];
    float sin[kMaxRotaryDim];
    for (std::int64_t token = begin; token < end; ++token) {
        const std::int64_t row = token % args.cos.sizes[0];
        Angles angles{args.cos.as<const float>() + row * half,
                      args.sin.as<const float>() + row * half,
                      Vec::broadcast(args.backward ? -1.0f : 1.0f),
                      2 * half};
        if (args.interleaved) {
            interleave(args, row, cos, sin);
            angles.cos = cos;
            angles.sin = sin;
        }
        for (std::int64_t number = 0; number < heads.count(); ++number) {
            const RotaryHead<T> head = heads.at(token, number);
            T* const target = args.backward ? head.packed : head.split;
            const T* const source = args.backward ? head.split : head.packed;
            const std::int64_t turned = head.turned ? angles.dim : 0;
            if (!head.turned) {
                // Only copied.
            } else if (args.interleaved) {
                turn_interleaved(target, source, angles);
            } else {
                turn_halves(target, source, angles);
            }
            std::copy(source + turned, source + size, target + turned);
        }
    }
}

void rotary(const Rotary& args) {
    const std::int64_t num_tokens = args.q.sizes[0];
    const std::int64_t grain =
        std::max<std::int64_t>(1, kGrainElements * num_tokens / args.packed.numel());
    visit_float_dtype(args.q.dtype, [&](auto tag) {
        parallel_for(0, num_tokens, grain, [&](std::int64_t begin, std::int64_t end) {
            turn_tokens<typename decltype(tag)::type>(args, begin, end);
        });
    });
}

}  // namespace

extern const RotaryKernels rotary_kernels;
const RotaryKernels rotary_kernels{rotary};

}  // namespace megacore::cpu::MEGACORE_ISA
