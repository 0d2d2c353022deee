// The CUDA kernel of dropout_add.h under the emulation: the bits of the CPU kernel, under several
// orders of execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "kernels/dropout_add.h"
#include "runtime/emulator.h"
#include "support.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::Buffer;

constexpr unsigned kSeeds = 3;

template <class T>
std::vector<T> run_cuda(DropoutAdd args,
                        const Buffer<T>& x,
                        const Buffer<T>& residual,
                        std::size_t offset) {
    const DeviceArray<T> x_("x", x.elements, offset), residual_("r", residual.elements, offset);
    const DeviceArray<T> out("out", x.elements.size(), offset);
    args.x.data = x_.data();
    args.out.data = out.data();
    if (args.residual.present()) args.residual.data = residual_.data();
    cuda::dropout_add(args, nullptr);
    return out.values();
}

template <class T>
void check_all_cases() {
    for (const std::int64_t count : {1, 3, 64, 1021, 5000}) {
        for (const bool with_residual : {false, true}) {
            for (const std::size_t offset : {std::size_t{0}, sizeof(T)}) {
                Buffer<T> x("x", {count}), residual("residual", {count}), out("out", {count});
                x.fill_normal(1);
                residual.fill_normal(2);
                DropoutAdd args{.out = out.tensor, .x = x.tensor, .drop = 0.3, .seed = 1234567};
                if (with_residual) args.residual = residual.tensor;
                cpu::dropout_add(args);
                for (unsigned seed = 0; seed < kSeeds; ++seed) {
                    cuda_emulation::settings() = {.seed = seed, .multiprocessors = 1};
                    const std::vector<T> found = run_cuda(args, x, residual, offset);
                    EXPECT_EQ(
                        std::memcmp(found.data(), out.elements.data(), found.size() * sizeof(T)), 0)
                        << count << " elements, offset " << offset << ", seed " << seed;
                }
            }
        }
    }
    cuda_emulation::settings() = {};
}

TEST(CudaDropoutAdd, Float32) { check_all_cases<float>(); }
TEST(CudaDropoutAdd, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CudaDropoutAdd, Float16) { check_all_cases<Float16>(); }

}  // namespace
}  // namespace megacore
