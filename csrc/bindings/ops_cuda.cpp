// megacore._ops on CUDA. Compiled by the host compiler; the kernels come from csrc/kernels/*.cu.
#include "bindings/ops.h"

namespace megacore::bindings {
namespace {

struct CudaBackend {
    // Work goes to torch's current stream of the tensor's device.
    explicit CudaBackend(const Tensor& tensor) : guard_(tensor.get_device_index()) {
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
    }

    void norm_forward(const NormForward& args) const { cuda::norm_forward(args, stream_); }
    static std::int64_t norm_backward_workspace(std::int64_t num_rows, std::int64_t hidden) {
        return cuda::norm_backward_workspace(num_rows, hidden);
    }
    void norm_backward(const NormBackward& args) const { cuda::norm_backward(args, stream_); }
    void adamw_step(const AdamWStep& args) const { cuda::adamw_step(args, stream_); }
    void activation_forward(const ActivationForward& args) const {
        cuda::activation_forward(args, stream_);
    }
    static std::int64_t activation_backward_workspace(std::int64_t num_rows, std::int64_t width) {
        return cuda::activation_backward_workspace(num_rows, width);
    }
    void activation_backward(const ActivationBackward& args) const {
        cuda::activation_backward(args, stream_);
    }
    void rotary(const Rotary& args) const { cuda::rotary(args, stream_); }
    void cross_entropy_forward(const CrossEntropyForward& args) const {
        cuda::cross_entropy_forward(args, stream_);
    }
    void cross_entropy_backward(const CrossEntropyBackward& args) const {
        cuda::cross_entropy_backward(args, stream_);
    }
    static std::int64_t attention_forward_workspace(const AttentionForward& args) {
        return cuda::attention_forward_workspace(args);
    }
    void attention_forward(const AttentionForward& args) const {
        cuda::attention_forward(args, stream_);
    }
    static std::int64_t attention_backward_workspace(const AttentionBackward& args) {
        return cuda::attention_backward_workspace(args);
    }
    void attention_backward(const AttentionBackward& args) const {
        cuda::attention_backward(args, stream_);
    }
    void softmax_forward(const SoftmaxForward& args) const { cuda::softmax_forward(args, stream_); }
    void softmax_backward(const SoftmaxBackward& args) const {
        cuda::softmax_backward(args, stream_);
    }
    void sgd_step(const SgdStep& args) const { cuda::sgd_step(args, stream_); }
    void square_sum(const SquareSum& args) const { cuda::square_sum(args, stream_); }
    void fp8_quantize(const Fp8Quantize& args) const { cuda::fp8_quantize(args, stream_); }
    void fp8_quantize_blocks(const Fp8QuantizeBlocks& args) const {
        cuda::fp8_quantize_blocks(args, stream_);
    }
    void dropout_add(const DropoutAdd& args) const { cuda::dropout_add(args, stream_); }
    void embedding_backward(const EmbeddingBackward& args) const {
        cuda::embedding_backward(args, stream_);
    }

private:
    torch::stable::accelerator::DeviceGuard guard_;
    void* stream_ = nullptr;
};

}  // namespace
}  // namespace megacore::bindings

STABLE_TORCH_LIBRARY_IMPL(megacore, CUDA, library) {
    megacore::bindings::register_ops<megacore::bindings::CudaBackend>(library);
}
