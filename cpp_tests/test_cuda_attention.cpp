// The CUDA kernels of attention.h under the emulation: against float64, under several orders of
// execution, with every access checked.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include "attention_reference.h"
#include "runtime/emulator.h"

namespace megacore {
namespace {

using cuda_emulation::DeviceArray;
using testing::AttentionCase;
using testing::AttentionProblem;
using testing::expect_error;

template <class T>
void run(AttentionProblem<T>& p, std::size_t shift) {
    const std::size_t offset = shift * sizeof(T);
    const DeviceArray<T> q("q", p.q.elements, offset), k("k", p.k.elements, offset);
    const DeviceArray<T> v("v", p.v.elements, offset), dout("dout", p.dout.elements, offset);
    const DeviceArray<T> out("out", p.out.elements.size(), offset);
    const DeviceArray<T> dq("dq", p.dq.elements.size(), offset);
    const DeviceArray<T> dk("dk", p.dk.elements.size(), offset);
    const DeviceArray<T> dv("dv", p.dv.elements.size(), offset);
    const DeviceArray<float> log_sum("log_sum", p.log_sum.elements.size());
    const DeviceArray<std::int64_t> documents("documents", p.c.documents);
    const DeviceArray<std::int64_t> key_lengths("key_lengths", p.c.key_lengths);
    AttentionForward forward = p.forward_args();
    if (forward.rule.documents.present()) forward.rule.documents.data = documents.data();
    if (forward.rule.key_lengths.present()) forward.rule.key_lengths.data = key_lengths.data();
    forward.q.data = q.data();
    forward.k.data = k.data();
    forward.v.data = v.data();
    forward.out.data = out.data();
    forward.log_sum.data = log_sum.data();
    const std::int64_t forward_floats = cuda::attention_forward_workspace(forward);
    const DeviceArray<float> forward_workspace("workspace",
                                               static_cast<std::size_t>(forward_floats));
    forward.workspace = p.working(forward_floats);
    forward.workspace.data = forward_workspace.data();
    cuda::attention_forward(forward, nullptr);
    AttentionBackward backward = p.backward_args();
    backward.rule = forward.rule;
    backward.q = forward.q;
    backward.k = forward.k;
    backward.v = forward.v;
    backward.out = forward.out;
    backward.log_sum = forward.log_sum;
    backward.dout.data = dout.data();
    backward.dq.data = dq.data();
    backward.dk.data = dk.data();
    backward.dv.data = dv.data();
    const std::int64_t backward_floats = cuda::attention_backward_workspace(backward);
    const DeviceArray<float> backward_workspace("workspace",
                                                static_cast<std::size_t>(backward_floats));
    backward.workspace = p.working(backward_floats);
    backward.workspace.data = backward_workspace.data();
    cuda::attention_backward(backward, nullptr);
    p.out.elements = out.values();
    p.log_sum.elements = log_sum.values();
    p.dq.elements = dq.values();
    p.dk.elements = dk.values();
    p.dv.elements = dv.values();
}

template <class T>
void check(const AttentionCase& c, unsigned seeds = 3, std::size_t shift = 0) {
    SCOPED_TRACE(::testing::Message() << c);
    AttentionProblem<T> p(c);
    cuda_emulation::settings() = {.seed = 0};
    run(p, shift);
    p.expect_result(true);
    for (unsigned seed = 1; seed < seeds; ++seed) {
        AttentionProblem<T> other(c);
        cuda_emulation::settings().seed = seed;
        run(other, shift);
        const auto same = [](const auto& a, const auto& b) {
            const std::size_t bytes = a.elements.size() * sizeof(a.elements[0]);
            return std::memcmp(a.elements.data(), b.elements.data(), bytes) == 0;
        };
        EXPECT_TRUE(same(p.out, other.out) && same(p.log_sum, other.log_sum)) << "seed " << seed;
        EXPECT_TRUE(same(p.dq, other.dq) && same(p.dk, other.dk) && same(p.dv, other.dv))
            << "seed " << seed;
    }
    cuda_emulation::settings() = {};
}

TEST(CudaAttention, OneElement) { check<BFloat16>({.head = 1}); }

// More rows than a block and more keys than a tile; heads that are not whole tiles.
TEST(CudaAttention, Causal) {
    check<BFloat16>({.queries = 71, .keys = 71, .head = 40});
    check<Float16>({.batch = 2, .queries = 19, .keys = 19, .groups = 2, .ratio = 3, .head = 16});
}

TEST(CudaAttention, UnalignedAndOddHeads) {
    check<Float16>({.queries = 21, .keys = 33, .head = 32, .causal = false}, 2, 1);
    check<BFloat16>({.queries = 21, .keys = 18, .ratio = 2, .head = 13}, 2);
}

TEST(CudaAttention, WindowAndDropout) {
    check<BFloat16>({.queries = 80, .keys = 80, .head = 32, .window = 9, .drop = 0.3});
}

TEST(CudaAttention, Documents) {
    check<Float16>({.queries = 75, .keys = 75, .head = 32, .documents = {0, 1, 30, 30, 74, 75}});
    check<BFloat16>(
        {.queries = 40, .keys = 40, .head = 32, .causal = false, .documents = {0, 9, 40}}, 2);
}

// Few queries and many keys, of caches that are filled to different lengths.
TEST(CudaAttention, PartsOfACache) {
    check<BFloat16>(
        {.batch = 2, .queries = 2, .keys = 600, .ratio = 2, .head = 16, .key_lengths = {600, 37}},
        2);
}

TEST(CudaAttention, LargeHeads) {
    check<BFloat16>({.queries = 20, .keys = 20, .head = 128}, 2);
    check<Float16>({.queries = 18, .keys = 35, .head = 200}, 2);
}

TEST(CudaAttention, Float32IsRefused) {
    AttentionProblem<float> p({.queries = 2, .keys = 2});
    expect_error([&] { cuda::attention_forward(p.forward_args(), nullptr); },
                 "q: expected bfloat16 or float16 on CUDA");
}

}  // namespace
}  // namespace megacore
