// kernels/attention: every compiled instruction set against float64.
#include "attention_reference.h"
#include "kernels/attention.h"
#include "support.h"

namespace megacore {
namespace {

using testing::AttentionCase;
using testing::AttentionProblem;
using testing::Buffer;
using testing::expect_error;
using testing::IsaScope;
using testing::runnable_isas;

// 1, primes, more rows than a panel and more keys than a tile, grouped heads, rows that see
// nothing, caches, documents with empty ones among them.
std::vector<AttentionCase> cases() {
    return {{},
            {.batch = 2, .queries = 7, .keys = 7, .groups = 2, .ratio = 3, .head = 5},
            {.queries = 131, .keys = 131, .head = 40, .window = 17},
            {.queries = 67, .keys = 130, .groups = 2, .head = 64, .causal = false, .drop = 0.3},
            {.queries = 50, .keys = 20, .ratio = 2, .head = 33},
            {.batch = 2,
             .queries = 3,
             .keys = 90,
             .groups = 2,
             .ratio = 4,
             .head = 48,
             .key_lengths = {90, 21}},
            {.queries = 150,
             .keys = 150,
             .head = 32,
             .documents = {0, 1, 70, 70, 149, 150},
             .drop = 0.1},
            {.queries = 90, .keys = 90, .head = 32, .causal = false, .documents = {0, 31, 90}},
            {.queries = 210, .keys = 210, .groups = 1, .head = 256}};
}

template <class T>
void run(AttentionProblem<T>& problem) {
    AttentionForward forward = problem.forward_args();
    forward.workspace = problem.working(cpu::attention_forward_workspace(forward));
    cpu::attention_forward(forward);
    AttentionBackward backward = problem.backward_args();
    backward.workspace = problem.working(cpu::attention_backward_workspace(backward));
    cpu::attention_backward(backward);
}

template <class T>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const AttentionCase& c : cases()) {
            SCOPED_TRACE(::testing::Message() << name_of(isa) << " " << c);
            AttentionProblem<T> problem(c);
            run(problem);
            problem.expect_result(false);
        }
    }
}

TEST(Attention, Float32) { check_all_cases<float>(); }
TEST(Attention, BFloat16) { check_all_cases<BFloat16>(); }
TEST(Attention, Float16) { check_all_cases<Float16>(); }

// More keys than a chunk of backward has, and few rows whose keys forward cuts into parts.
TEST(Attention, ManyKeys) {
    for (const std::int64_t window : {0, 1500}) {
        AttentionProblem<float> problem(
            {.queries = 5, .keys = 2500, .groups = 2, .ratio = 2, .head = 16, .window = window});
        run(problem);
        problem.expect_result(false);
    }
}

TEST(Attention, AnyStrides) {
    const AttentionCase c{.queries = 30, .keys = 30, .groups = 2, .ratio = 2, .head = 16};
    AttentionProblem<float> problem(c);
    run(problem);
    // q, k and v in one buffer, as a projection leaves them.
    Buffer<float> packed("packed", {30, 2, 4, 16});
    AttentionForward args = problem.forward_args();
    for (std::int64_t token = 0; token < 30; ++token) {
        for (std::int64_t group = 0; group < 2; ++group) {
            for (std::int64_t slot = 0; slot < 4; ++slot) {
                const Buffer<float>& source = slot < 2   ? problem.q
                                              : slot < 3 ? problem.k
                                                         : problem.v;
                const std::int64_t head =
                    slot < 2 ? (token * 2 + group) * 2 + slot : token * 2 + group;
                for (std::int64_t d = 0; d < 16; ++d) {
                    packed.elements[static_cast<std::size_t>(((token * 2 + group) * 4 + slot) * 16 +
                                                             d)] =
                        source.elements[static_cast<std::size_t>(head * 16 + d)];
                }
            }
        }
    }
    args.q.data = packed.elements.data();
    args.q.strides = {30 * 128, 128, 64, 16, 1};
    args.k.data = packed.elements.data() + 32;
    args.k.strides = {30 * 128, 128, 64, 1};
    args.v.data = packed.elements.data() + 48;
    args.v.strides = args.k.strides;
    Buffer<float> out("out", {1, 30, 2, 2, 16});
    args.out = out.tensor;
    cpu::attention_forward(args);
    EXPECT_EQ(out.elements, problem.out.elements);
}

TEST(Attention, Faults) {
    AttentionProblem<float> problem({.queries = 4, .keys = 6, .groups = 2, .head = 8});
    const auto expect = [&](const auto& change, const std::string& text) {
        AttentionForward args = problem.forward_args();
        change(args);
        expect_error([&] { cpu::attention_forward(args); }, text);
    };
    expect([](auto& args) { args.k.sizes[2] = 1; }, "found k: float32 [1, 6, 1, 8]");
    expect([](auto& args) { args.v.dtype = DType::kBFloat16; }, "v");
    expect([](auto& args) { args.q.strides[4] = 2; }, "q: expected a last axis without gaps");
    expect([](auto& args) { args.rule.causal = false, args.rule.window = 2; }, "only with causal");
    expect([](auto& args) { args.rule.drop = 2.0; }, "drop: expected a probability");
    std::vector<std::int64_t> documents{0, 4};
    expect(
        [&](auto& args) {
            args.rule.documents =
                contiguous_view("documents", documents.data(), DType::kInt64, {2});
        },
        "documents: expected cumulative lengths");
    AttentionBackward args = problem.backward_args();
    expect_error([&] { cpu::attention_backward(args); }, "workspace");
}

}  // namespace
}  // namespace megacore
