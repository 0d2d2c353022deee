// CUDA kernels of rotary.h.
//
// A thread turns kVec neighbouring pairs of one head, or copies 2 kVec lanes. Every lane is read
// once and written once, with 16-byte accesses where half a head allows it; the angles of a token
// come from the caches after its first head. Bound by memory.
#include <cuda_runtime.h>

#include <algorithm>
#include <type_traits>

#include "core/math.h"
#include "kernels/launch.h"
#include "kernels/rotary.h"
#include "kernels/rotary_heads.h"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kMaxThreads = 256;

template <class T>
struct Params {
    RotaryHeads<T> heads;
    const float* cos;  // [num_angles, half]
    const float* sin;
    std::int64_t num_angles;
    std::int64_t half;  // pairs of a head that are turned
    float sign;         // of sin
};

// --- Kernels ------------------------------------------------------------------------------------

// Grid: tokens. A head is as many items as there are kVec pairs in it; item i below half / kVec
// turns pairs, the others copy lanes behind the turned ones.
template <class T, int kVec, bool kInterleaved, bool kBackward>
__global__ void __launch_bounds__(kMaxThreads) rotary_kernel(const Params<T> p) {
    const std::int64_t token = blockIdx.x;
    const std::int64_t size = p.heads.head_size;
    // Not ceil_div: nvcc calls host functions from the device only with a flag of its own.
    const int items = static_cast<int>((size + 2 * kVec - 1) / (2 * kVec));
    const int count = static_cast<int>(p.heads.count()) * items;
    for (int index = threadIdx.x; index < count; index += blockDim.x) {
        const RotaryHead<T> head = p.heads.at(token, index / items);
        const T* const source = kBackward ? head.split : head.packed;
        T* const target = kBackward ? head.packed : head.split;
        const std::int64_t pair = index % items * kVec;
        // Two packs: the halves of kVec pairs, or 2 kVec lanes in a row.
        const bool turned = head.turned && pair < p.half;
        const bool halves = turned && !kInterleaved;
        const std::int64_t first = halves ? pair : 2 * pair;
        const std::int64_t second = halves ? pair + p.half : 2 * pair + kVec;
        const bool has_second = kVec > 1 || second < size;  // an odd head ends with one lane
        Pack<T, kVec> packs[2];
        packs[0] = Pack<T, kVec>::load(source + first);
        if (has_second) packs[1] = Pack<T, kVec>::load(source + second);
        if (turned) {
            const std::int64_t at = token % p.num_angles * p.half + pair;
            const auto cos = Pack<float, kVec>::load(p.cos + at);
            const auto sin = Pack<float, kVec>::load(p.sin + at);
#pragma unroll
            for (int k = 0; k < kVec; ++k) {
                const int x_lane = kInterleaved ? 2 * k : k;
                const int y_lane = kInterleaved ? 2 * k + 1 : k + kVec;
                T& x = packs[x_lane / kVec].elements[x_lane % kVec];
                T& y = packs[y_lane / kVec].elements[y_lane % kVec];
                const float wide_x = widen(x);
                const float wide_y = widen(y);
                const float s = sin.elements[k] * p.sign;
                x = narrow<T>(fmaf(wide_x, cos.elements[k], -(wide_y * s)));
                y = narrow<T>(fmaf(wide_y, cos.elements[k], wide_x * s));
            }
        }
        packs[0].store(target + first);
        if (has_second) packs[1].store(target + second);
    }
}

// --- Launcher -----------------------------------------------------------------------------------

template <class Body>
void visit_bool(bool value, const Body& body) {
    value ? body(std::true_type{}) : body(std::false_type{});
}

template <class T>
void launch_rotary(const Rotary& args, void* stream) {
    const Params<T> params{.heads = RotaryHeads<T>::of(args),
                           .cos = args.cos.as<const float>(),
                           .sin = args.sin.as<const float>(),
                           .num_angles = args.cos.sizes[0],
                           .half = args.cos.sizes[1],
                           .sign = args.backward ? -1.0f : 1.0f};
    constexpr int kWide = 16 / static_cast<int>(sizeof(T));
    const bool vectors = params.half % kWide == 0 && params.heads.head_size % (2 * kWide) == 0 &&
                         aligned16(args.packed.data) && aligned16(args.q.data) &&
                         aligned16(args.k.data) && aligned16(args.v.data) &&
                         aligned16(args.cos.data) && aligned16(args.sin.data);
    const auto with_width = [&](auto vec) {
        const std::int64_t items =
            params.heads.count() * ceil_div(params.heads.head_size, 2 * vec());
        const std::int64_t threads = std::min<std::int64_t>(round_up(items, 32), kMaxThreads);
        const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.q.sizes[0])),
                                .block = dim3(static_cast<unsigned>(threads)),
                                .stream = stream};
        visit_bool(args.interleaved, [&](auto interleaved) {
            visit_bool(args.backward, [&](auto backward) {
                launch(rotary_kernel<T, vec(), interleaved(), backward()>, shape, params);
            });
        });
    };
    if (vectors) {
        with_width(std::integral_constant<int, kWide>{});
    } else {
        with_width(std::integral_constant<int, 1>{});
    }
}

}  // namespace

// --- Entry point --------------------------------------------------------------------------------

void rotary(const Rotary& args, void* stream) {
    check(args);
    if (args.packed.numel() == 0) return;
    visit_float_dtype(args.q.dtype, [&](auto tag) {
        launch_rotary<typename DeviceType<typename decltype(tag)::type>::type>(args, stream);
    });
}

}  // namespace megacore::cuda
