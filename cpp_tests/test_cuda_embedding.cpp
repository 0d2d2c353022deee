// The CUDA kernel of embedding.h under the emulation: against float64, under several orders of
// execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "embedding_reference.h"
#include "runtime/emulator.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::EmbeddingCase;
using testing::EmbeddingProblem;
using testing::kEmbeddingCases;

constexpr unsigned kSeeds = 3;

template <class T, class Out>
void run(EmbeddingProblem<T, Out>& p) {
    const std::size_t size = p.dtable.elements.size(), offset = p.c.offset * sizeof(Out);
    const DeviceArray<Out> dtable = p.accumulate
                                        ? DeviceArray<Out>("dtable", p.dtable.elements, offset)
                                        : DeviceArray<Out>("dtable", size, offset);
    const DeviceArray<T> dout("dout", p.dout.elements, p.c.offset * sizeof(T));
    const DeviceArray<std::int64_t> sorted("sorted", p.sorted_values);
    const DeviceArray<std::int64_t> order("order", p.order_values);
    EmbeddingBackward args = p.args();
    args.dtable.data = dtable.data();
    args.dout.data = dout.data();
    args.sorted.data = sorted.data();
    args.order.data = order.data();
    cuda::embedding_backward(args, nullptr);
    p.dtable.elements = dtable.values();
}

template <class T, class Out = T>
void check_all_cases(bool accumulate = false) {
    for (const EmbeddingCase& c : kEmbeddingCases) {
        SCOPED_TRACE(::testing::Message()
                     << "[" << c.rows << ", " << c.hidden << "], tokens " << c.tokens);
        EmbeddingProblem<T, Out> p(c, accumulate);
        cuda_emulation::settings() = {.seed = 0};
        run(p);
        p.expect_result();
        for (unsigned seed = 1; seed < kSeeds; ++seed) {
            EmbeddingProblem<T, Out> other(c, accumulate);
            cuda_emulation::settings().seed = seed;
            run(other);
            EXPECT_EQ(std::memcmp(p.dtable.elements.data(),
                                  other.dtable.elements.data(),
                                  p.dtable.elements.size() * sizeof(Out)),
                      0)
                << "seed " << seed;
        }
    }
}

TEST(CudaEmbedding, Float32) { check_all_cases<float>(); }
TEST(CudaEmbedding, BFloat16) { check_all_cases<BFloat16>(); }
TEST(CudaEmbedding, Float16) { check_all_cases<Float16>(); }
TEST(CudaEmbedding, Float32Added) { check_all_cases<float, float>(true); }
TEST(CudaEmbedding, BFloat16Added) { check_all_cases<BFloat16, float>(true); }
TEST(CudaEmbedding, Float16Added) { check_all_cases<Float16, float>(true); }

}  // namespace
}  // namespace megacore
