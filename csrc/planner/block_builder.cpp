#include "planner/block_builder.h"

#include <algorithm>

namespace megacore::planner {
namespace {

/// Pieces in which --tp-comm-overlap moves an operand: the first or last of them is exposed.
constexpr double kPieces = 4.0;

}  // namespace

BlockBuilder::BlockBuilder(const Model& model,
                           const Layout& layout,
                           const Hardware& hardware,
                           double tokens,
                           bool with_ops)
    : model_(model),
      layout_(layout),
      hardware_(hardware),
      tokens_(tokens),
      with_ops_(with_ops),
      tensor_place_(place_of(layout, "tp")) {
    if (layout.tensor > 1) {
        gather_s_ = shard_time(hardware, tensor_place_, full_bytes());
        reduce_s_ = layout.sequence_parallel
                        ? gather_s_
                        : all_reduce_time(hardware, tensor_place_, full_bytes());
    }
    cost_.input_bytes = full_bytes() * (layout.sequence_parallel ? 1.0 / layout.tensor : 1.0);
}

double BlockBuilder::full_bytes() const {
    return tokens_ * static_cast<double>(model_.hidden) * model_.dtype_bytes;
}

double BlockBuilder::memory_time(double elements, double extra_bytes_per_token) const {
    return tokens_ * (elements * model_.dtype_bytes + extra_bytes_per_token) /
           hardware_.memory_rate;
}

void BlockBuilder::record(
    const char* name, const char* category, double forward, double input, double weight) {
    if (with_ops_) cost_.ops.push_back({name, category, forward, input, weight});
}

void BlockBuilder::launch(int forward, int input, int weight) {
    cost_.forward.launch += forward * hardware_.op_overhead_s;
    cost_.input_grad.launch += input * hardware_.op_overhead_s;
    cost_.weight_grad.launch += weight * hardware_.op_overhead_s;
}

void BlockBuilder::hide(PassTime& pass, double communication, double compute) {
    const double hidden = std::min(communication, compute);
    pass.tensor_hidden += hidden;
    pass.tensor += communication - hidden + hidden * hardware_.overlap_cost;
}

void BlockBuilder::norm() {
    const auto h = static_cast<double>(model_.hidden);
    const double forward = memory_time(2.0 * h * split());
    // Its gradient is added to that of the residual stream.
    const double backward = memory_time(5.0 * h * split());
    cost_.forward.memory += forward;
    cost_.input_grad.memory += backward;
    record("norm", "memory_bound", forward, backward, 0.0);
    launch(1, 3, 0);
    const double statistics = model_.norm_bias ? 8.0 : 4.0;
    keep((h * model_.dtype_bytes + statistics) * split());
}

void BlockBuilder::column(const char* name, double inner, double cols) {
    const int e = model_.dtype_bytes;
    const double forward = matmul_time(hardware_, tokens_, cols, inner, e);
    const double input = matmul_time(hardware_, tokens_, inner, cols, e);
    const double weight = matmul_time(hardware_, cols, inner, tokens_, e, true);
    cost_.forward.matmul += forward;
    cost_.input_grad.matmul += input;
    cost_.weight_grad.matmul += weight;
    record(name, "matmul", forward, input, weight);
    launch(1, 1, 1);
    keep(inner * e * split());  // the output of the norm
    cost_.deferred_bytes += tokens_ * (inner * split() + cols) * e;
    if (layout_.tensor == 1) return;
    const double bytes = shard_traffic(full_bytes(), layout_.tensor);
    if (layout_.sequence_parallel) {
        if (layout_.tp_comm_overlap) {
            const double hidden = gather_s_ * (1.0 - 1.0 / kPieces);
            cost_.forward.tensor += gather_s_ - hidden;
            hide(cost_.forward, hidden, forward);
        } else {
            cost_.forward.tensor += gather_s_;
        }
        // The input is gathered again behind the first product of backward, its gradient is
        // scattered behind the second.
        hide(cost_.input_grad, gather_s_, input);
        hide(cost_.input_grad, reduce_s_, weight);
        cost_.tensor_forward_bytes += bytes;
        cost_.tensor_backward_bytes += 2.0 * bytes;
    } else {
        hide(cost_.input_grad, reduce_s_, weight);
        cost_.tensor_backward_bytes += 2.0 * bytes;
    }
}

void BlockBuilder::side_column(const char* name, double inner, double cols, double ratio) {
    const int e = model_.dtype_bytes;
    const double forward = matmul_time(hardware_, ratio * tokens_, cols, inner, e);
    const double input = matmul_time(hardware_, ratio * tokens_, inner, cols, e);
    const double weight = matmul_time(hardware_, cols, inner, ratio * tokens_, e, true);
    cost_.forward.matmul += forward;
    cost_.input_grad.matmul += input;
    cost_.weight_grad.matmul += weight;
    record(name, "matmul", forward, input, weight);
    launch(1, 1, 1);
    if (layout_.tensor == 1) return;
    const double bytes = ratio * shard_traffic(full_bytes(), layout_.tensor);
    if (layout_.sequence_parallel) {
        cost_.forward.tensor += ratio * gather_s_;
        hide(cost_.input_grad, ratio * gather_s_, input);
        cost_.tensor_forward_bytes += bytes;
        cost_.tensor_backward_bytes += bytes;
    }
    hide(cost_.input_grad, ratio * reduce_s_, weight);
    cost_.tensor_backward_bytes += layout_.sequence_parallel ? bytes : 2.0 * bytes;
}

void BlockBuilder::row(const char* name, double inner, double cols) {
    const int e = model_.dtype_bytes;
    const double forward = matmul_time(hardware_, tokens_, cols, inner, e);
    const double input = matmul_time(hardware_, tokens_, inner, cols, e);
    const double weight = matmul_time(hardware_, cols, inner, tokens_, e, true);
    cost_.forward.matmul += forward;
    cost_.input_grad.matmul += input;
    cost_.weight_grad.matmul += weight;
    record(name, "matmul", forward, input, weight);
    launch(1, 1, 1);
    keep(inner * e);
    cost_.deferred_bytes += tokens_ * (inner + cols * split()) * e;
    if (layout_.tensor == 1) return;
    const double bytes = shard_traffic(full_bytes(), layout_.tensor);
    if (layout_.sequence_parallel) {
        if (layout_.tp_comm_overlap) {
            const double hidden = 1.0 - 1.0 / kPieces;
            cost_.forward.tensor += reduce_s_ * (1.0 - hidden);
            hide(cost_.forward, reduce_s_ * hidden, forward);
            cost_.input_grad.tensor += gather_s_ * (1.0 - hidden);
            hide(cost_.input_grad, gather_s_ * hidden, input);
        } else {
            cost_.forward.tensor += reduce_s_;
            cost_.input_grad.tensor += gather_s_;
        }
        cost_.tensor_forward_bytes += bytes;
        cost_.tensor_backward_bytes += bytes;
    } else {
        cost_.forward.tensor += reduce_s_;
        cost_.tensor_forward_bytes += 2.0 * bytes;
    }
}

void BlockBuilder::attention(const char* name, double length, double source, bool causal) {
    const double heads = static_cast<double>(model_.heads) / layout_.tensor;
    const auto width = static_cast<double>(model_.head_width);
    // All keys of the sequence, in whatever pieces they come.
    const double keys = source * layout_.context;
    const double sequences = tokens_ / length;
    const double products = 4.0 * sequences * heads * width * length * keys;
    double forward = 0.0;
    double backward = 0.0;
    if (model_.flash) {
        const double done = causal ? 0.5 * products : products;
        forward = done / (hardware_.peak_flops * hardware_.attention_forward_efficiency);
        backward = 2.5 * done / (hardware_.peak_flops * hardware_.attention_backward_efficiency);
        keep(4.0 * heads);  // log-sums
        cost_.core_bytes += tokens_ * 4.0 * heads;
        launch(1, 2, 0);
    } else {
        // Scores are written by the product, read and written by softmax and by dropout (with a
        // mask of one byte), and read by the second product; backward likewise.
        const double scores = sequences * heads * length * keys;
        const double rate = hardware_.peak_flops * hardware_.batched_matmul_efficiency;
        const double mask = model_.dropout ? 1.0 : 0.0;
        const double e = model_.dtype_bytes;
        const double there = scores * ((4.0 + 2.0 * mask) * e + mask) / hardware_.memory_rate;
        const double back = scores * ((7.0 + 2.0 * mask) * e + mask) / hardware_.memory_rate;
        forward = products / rate + there;
        backward = 2.0 * products / rate + back;
        const double bytes = scores * (e * (1.0 + mask) + mask);
        cost_.kept_bytes += bytes;
        cost_.core_bytes += bytes;
        launch(4, 7, 0);
    }
    cost_.forward.attention += forward;
    cost_.input_grad.attention += backward;
    cost_.core_again.attention += forward;
    cost_.core_again.launch += (model_.flash ? 1 : 4) * hardware_.op_overhead_s;
    record(name, "attention", forward, backward, 0.0);
    if (layout_.context > 1) context_exchange(forward, backward);
}

void BlockBuilder::context_exchange(double forward_compute, double backward_compute) {
    // Keys and values go around the ring behind attention to the block before; in backward they do
    // so again, and their fp32 gradients travel with them all the way home.
    const double parts = layout_.context;
    const double block = tokens_ * 2.0 * static_cast<double>(model_.key_width()) / layout_.tensor;
    const double there = block * model_.dtype_bytes;
    const double back = block * 4.0;
    const GroupPlace place = place_of(layout_, "cp");
    const double forward = (parts - 1.0) * send_time(hardware_, place, there);
    const double backward = (parts - 1.0) * send_time(hardware_, place, there) +
                            parts * send_time(hardware_, place, back);
    const auto add = [&](PassTime& pass, double communication, double compute) {
        const double hidden = std::min(communication, compute * (parts - 1.0) / parts);
        pass.context_hidden += hidden;
        pass.context += communication - hidden + hidden * hardware_.overlap_cost;
    };
    add(cost_.forward, forward, forward_compute);
    add(cost_.core_again, forward, forward_compute);
    add(cost_.input_grad, backward, backward_compute);
    cost_.context_forward_bytes += (parts - 1.0) * there;
    cost_.context_backward_bytes += (parts - 1.0) * there + parts * back;
}

void BlockBuilder::pointwise(const char* name, double forward_elements, double backward_elements) {
    const double forward = memory_time(forward_elements);
    const double backward = memory_time(backward_elements);
    cost_.forward.memory += forward;
    cost_.input_grad.memory += backward;
    record(name, "memory_bound", forward, backward, 0.0);
    launch(1, 1, 0);
}

void BlockBuilder::residual() {
    const auto h = static_cast<double>(model_.hidden);
    const double mask = model_.dropout ? 1.0 : 0.0;
    const double forward = memory_time(3.0 * h * split(), mask * h * split());
    double moved = model_.dropout ? 2.0 : 0.0;
    if (model_.linear_bias) moved += 1.0;
    const double backward = memory_time(moved * h * split(), mask * h * split());
    cost_.forward.memory += forward;
    cost_.input_grad.memory += backward;
    record("residual", "memory_bound", forward, backward, 0.0);
    launch(1, moved > 0.0 ? 1 : 0, 0);
    // The mask of dropout is drawn again in backward.
}

void BlockBuilder::scattered_sum() {
    if (layout_.tensor == 1) return;
    const double bytes = shard_traffic(full_bytes(), layout_.tensor);
    cost_.forward.tensor += reduce_s_;
    if (layout_.sequence_parallel) {
        cost_.input_grad.tensor += gather_s_;
        cost_.tensor_forward_bytes += bytes;
        cost_.tensor_backward_bytes += bytes;
    } else {
        cost_.tensor_forward_bytes += 2.0 * bytes;
    }
}

void BlockBuilder::loss_sums() {
    if (layout_.tensor == 1) return;
    // Largest logit, logit of the label, sum of exponentials: fp32, one each per token.
    const double bytes = 4.0 * tokens_;
    cost_.forward.tensor += 3.0 * all_reduce_time(hardware_, tensor_place_, bytes);
    cost_.tensor_forward_bytes += 3.0 * 2.0 * shard_traffic(bytes, layout_.tensor);
}

void BlockBuilder::keep(double bytes_per_token) { cost_.kept_bytes += tokens_ * bytes_per_token; }

void BlockBuilder::transient(double bytes) {
    cost_.transient_bytes = std::max(cost_.transient_bytes, bytes);
}

BlockCost BlockBuilder::take() { return std::move(cost_); }

}  // namespace megacore::planner
