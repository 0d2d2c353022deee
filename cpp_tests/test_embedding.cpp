// kernels/embedding: every compiled instruction set against float64.
#include "embedding_reference.h"

namespace megacore {
namespace {

using testing::EmbeddingCase;
using testing::EmbeddingProblem;
using testing::expect_error;
using testing::IsaScope;
using testing::kEmbeddingCases;
using testing::runnable_isas;

template <class T, class Out = T>
void check_all_cases(bool accumulate = false) {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const EmbeddingCase& c : kEmbeddingCases) {
            SCOPED_TRACE(::testing::Message() << name_of(isa) << " [" << c.rows << ", " << c.hidden
                                              << "], tokens " << c.tokens);
            EmbeddingProblem<T, Out> p(c, accumulate);
            cpu::embedding_backward(p.args());
            p.expect_result();
        }
    }
}

TEST(Embedding, Float32) { check_all_cases<float>(); }
TEST(Embedding, BFloat16) { check_all_cases<BFloat16>(); }
TEST(Embedding, Float16) { check_all_cases<Float16>(); }

TEST(Embedding, Float32Added) { check_all_cases<float, float>(true); }
TEST(Embedding, BFloat16Added) { check_all_cases<BFloat16, float>(true); }
TEST(Embedding, Float16Added) { check_all_cases<Float16, float>(true); }

TEST(Embedding, FaultsNameTheTensor) {
    EmbeddingProblem<float> p({4, 8, 6});
    EmbeddingBackward args = p.args();
    args.order.sizes[0] = 5;
    expect_error([&] { cpu::embedding_backward(args); }, "expected shape [6], found order");
    args = p.args();
    args.dout.sizes[1] = 7;
    expect_error([&] { cpu::embedding_backward(args); }, "dout");
    EmbeddingProblem<BFloat16> sums({4, 8, 6}, true);
    expect_error([&] { cpu::embedding_backward(sums.args()); }, "dtable");
}

}  // namespace
}  // namespace megacore
