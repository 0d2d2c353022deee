// The CUDA kernels of rotary.h under the emulation: against float64 closed forms, under several
// orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "rotary_reference.h"
#include "runtime/emulator.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;
using testing::kRotaryCases;
using testing::RotaryCase;
using testing::RotaryProblem;

constexpr unsigned kSeeds = 3;

// A tensor on the device in place of the one on the host.
template <class T>
struct OnDevice {
    DeviceArray<T> array;
    TensorView tensor;

    // An output is not initialized.
    OnDevice(const Buffer<T>& host, bool output, std::size_t offset)
        : array(output ? DeviceArray<T>(host.tensor.name, host.elements.size(), offset * sizeof(T))
                       : DeviceArray<T>(host.tensor.name, host.elements, offset * sizeof(T))),
          tensor(host.tensor) {
        tensor.data = array.data();
    }
};

template <class T>
void run(RotaryProblem<T>& p) {
    const bool backward = p.c.backward;
    const OnDevice<T> packed(p.packed, backward, p.c.offset), q(p.q, !backward, p.c.offset);
    const OnDevice<T> k(p.k, !backward, p.c.offset), v(p.v, !backward, p.c.offset);
    const OnDevice<float> cos(p.cos, false, 0), sin(p.sin, false, 0);
    Rotary args = p.args();
    args.packed = packed.tensor;
    args.q = q.tensor;
    if (p.c.with_kv) {
        args.k = k.tensor;
        args.v = v.tensor;
    }
    args.cos = cos.tensor;
    args.sin = sin.tensor;
    cuda::rotary(args, nullptr);
    if (backward) {
        p.packed.elements = packed.array.values();
        return;
    }
    p.q.elements = q.array.values();
    if (!p.c.with_kv) return;
    p.k.elements = k.array.values();
    p.v.elements = v.array.values();
}

template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
    return std::memcmp(a.elements.data(), b.elements.data(), a.elements.size() * sizeof(T)) == 0;
}

template <class T>
void check_all_cases() {
    for (const RotaryCase& c : kRotaryCases) {
        SCOPED_TRACE(::testing::Message() << c);
        RotaryProblem<T> p(c);
        cuda_emulation::settings() = {.seed = 0};
        run(p);
        p.expect_result();
        for (unsigned seed = 1; seed < kSeeds; ++seed) {
            RotaryProblem<T> other(c);
            cuda_emulation::settings().seed = seed;
            run(other);
            EXPECT_TRUE(same_bits(p.packed, other.packed) && same_bits(p.q, other.q) &&
                        same_bits(p.k, other.k) && same_bits(p.v, other.v))
                << "seed " << seed;
        }
    }
}

TEST(CudaRotary, Float32) { check_all_cases<float>(); }
TEST(CudaRotary, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CudaRotary, Float16) { check_all_cases<Float16>(); }

}  // namespace
}  // namespace megacore
