// megacore._ops on the CPU.
#include "bindings/ops.h"
#include "core/parallel_for.h"

namespace megacore::bindings {
namespace {

struct CpuBackend {
    explicit CpuBackend(const Tensor&) {}

    void norm_forward(const NormForward& args) const { cpu::norm_forward(args); }
    static std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden) {
        return cpu::norm_backward_workspace(num_rows, hidden);
    }
    void norm_backward(const NormBackward& args) const { cpu::norm_backward(args); }
    void adamw_step(const AdamWStep& args) const { cpu::adamw_step(args); }
    void activation_forward(const ActivationForward& args) const { cpu::activation_forward(args); }
    static std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width) {
        return cpu::activation_backward_workspace(num_rows, width);
    }
    void activation_backward(const ActivationBackward& args) const {
        cpu::activation_backward(args);
    }
    void rotary(const Rotary& args) const { cpu::rotary(args); }
    void cross_entropy_forward(const CrossEntropyForward& args) const {
        cpu::cross_entropy_forward(args);
    }
    void cross_entropy_backward(const CrossEntropyBackward& args) const {
        cpu::cross_entropy_backward(args);
    }
    static std::int64_t attention_forward_workspace(const AttentionForward& args) {
        return cpu::attention_forward_workspace(args);
    }
    void attention_forward(const AttentionForward& args) const { cpu::attention_forward(args); }
    static std::int64_t attention_backward_workspace(const AttentionBackward& args) {
        return cpu::attention_backward_workspace(args);
    }
    void attention_backward(const AttentionBackward& args) const { cpu::attention_backward(args); }
    void softmax_forward(const SoftmaxForward& args) const { cpu::softmax_forward(args); }
    void softmax_backward(const SoftmaxBackward& args) const { cpu::softmax_backward(args); }
    void sgd_step(const SgdStep& args) const { cpu::sgd_step(args); }
    void square_sum(const SquareSum& args) const { cpu::square_sum(args); }
    void fp8_quantize(const Fp8Quantize& args) const { cpu::fp8_quantize(args); }
    void fp8_quantize_blocks(const Fp8QuantizeBlocks& args) const {
        cpu::fp8_quantize_blocks(args);
    }
    void dropout_add(const DropoutAdd& args) const { cpu::dropout_add(args); }
    void embedding_backward(const EmbeddingBackward& args) const { cpu::embedding_backward(args); }
};

// Kernels run on torch's own threads, as many as torch.set_num_threads says.
void torch_parallel_loop(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeBody body) {
    torch::stable::parallel_for(begin, end, grain, body);
}

}  // namespace
}  // namespace megacore::bindings

STABLE_TORCH_LIBRARY_IMPL(megacore, CPU, library) {
    megacore::set_parallel_for(megacore::bindings::torch_parallel_loop);
    megacore::bindings::register_ops<megacore::bindings::CpuBackend>(library);
}
