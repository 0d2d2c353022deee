// Checks shared by the CPU and the CUDA kernels, and the choice of CPU version.
#include "kernels/attention.h"

#include "core/check.h"
#include "kernels/attention_cpu.h"
#include "kernels/isa_table.h"

namespace megacore {
namespace {

void check_dense_heads(const TensorView& tensor, DType dtype) {
    check_dtype(tensor, {dtype});
    const int last = tensor.rank - 1;
    MEGACORE_CHECK(tensor.sizes[last] <= 1 || tensor.strides[last] == 1,
                   tensor.name,
                   ": expected a last axis without gaps, found stride ",
                   tensor.strides[last]);
}

void check_queries(const TensorView& tensor, const TensorView& q) {
    const auto& sizes = q.sizes;
    check_shape(tensor, {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]});
    check_dense_heads(tensor, q.dtype);
}

void check_keys(const TensorView& tensor, const TensorView& k, const TensorView& q) {
    check_shape(tensor, {q.sizes[0], k.sizes[1], q.sizes[2], q.sizes[4]});
    check_dense_heads(tensor, q.dtype);
}

void check_indices(const TensorView& tensor, std::int64_t size) {
    check_shape(tensor, {size});
    check_dtype(tensor, {DType::kInt64});
    check_contiguous(tensor);
}

void check_inputs(const TensorView& q,
                  const TensorView& k,
                  const TensorView& v,
                  const TensorView& log_sum,
                  const AttentionRule& rule) {
    check_shape(q, {-1, -1, -1, -1, -1});
    check_shape(k, {-1, -1, -1, -1});
    check_dtype(q, {DType::kFloat32, DType::kBFloat16, DType::kFloat16});
    check_queries(q, q);
    check_keys(k, k, q);
    check_keys(v, k, q);
    MEGACORE_CHECK(q.sizes[4] >= 1 && q.sizes[4] <= kMaxAttentionHead,
                   "q: expected heads of 1 to ",
                   kMaxAttentionHead,
                   " elements, found ",
                   q.sizes[4]);
    check_shape(log_sum, {q.sizes[0], q.sizes[1], q.sizes[2], q.sizes[3]});
    check_dtype(log_sum, {DType::kFloat32});
    check_contiguous(log_sum);
    MEGACORE_CHECK(rule.window >= 0, "window: expected at least 0, found ", rule.window);
    MEGACORE_CHECK(rule.causal || rule.window == 0, "window: only with causal");
    MEGACORE_CHECK(
        rule.drop >= 0.0 && rule.drop <= 1.0, "drop: expected a probability, found ", rule.drop);
    if (rule.key_lengths.present()) check_indices(rule.key_lengths, q.sizes[0]);
    if (!rule.documents.present()) return;
    check_indices(rule.documents, -1);
    MEGACORE_CHECK(rule.documents.sizes[0] >= 2 && q.sizes[0] == 1 && q.sizes[1] == k.sizes[1] &&
                       !rule.key_lengths.present(),
                   "documents: expected cumulative lengths of one sequence without a cache, with ",
                   describe(q),
                   " and ",
                   describe(k));
}

void check_workspace(const TensorView& workspace, std::int64_t floats) {
    if (floats == 0) return;
    MEGACORE_CHECK(workspace.present(), "workspace: expected ", floats, " elements, found none");
    check_shape(workspace, {-1});
    check_dtype(workspace, {DType::kFloat32});
    check_contiguous(workspace);
    MEGACORE_CHECK(workspace.sizes[0] >= floats,
                   "workspace: expected ",
                   floats,
                   " elements, found ",
                   workspace.sizes[0]);
}

}  // namespace

void check(const AttentionForward& args) {
    check_inputs(args.q, args.k, args.v, args.log_sum, args.rule);
    check_queries(args.out, args.q);
}

void check(const AttentionBackward& args) {
    check_inputs(args.q, args.k, args.v, args.log_sum, args.rule);
    check_queries(args.dq, args.q);
    check_queries(args.dout, args.q);
    check_queries(args.out, args.q);
    check_keys(args.dk, args.k, args.q);
    check_keys(args.dv, args.k, args.q);
}

namespace cpu {

MEGACORE_ISA_TABLE(AttentionKernels, attention_kernels)

std::int64_t attention_forward_workspace(const AttentionForward& args) {
    return active_attention_kernels().forward_workspace(args);
}

std::int64_t attention_backward_workspace(const AttentionBackward& args) {
    return active_attention_kernels().backward_workspace(args);
}

void attention_forward(const AttentionForward& args) {
    check(args);
    if (args.q.numel() == 0) return;
    check_workspace(args.workspace, attention_forward_workspace(args));
    active_attention_kernels().forward(args);
}

void attention_backward(const AttentionBackward& args) {
    check(args);
    if (args.q.numel() == 0 && args.k.numel() == 0) return;
    check_workspace(args.workspace, attention_backward_workspace(args));
    active_attention_kernels().backward(args);
}

}  // namespace cpu
}  // namespace megacore
