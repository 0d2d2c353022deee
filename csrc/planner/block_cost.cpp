// The operations of a transformer as the engine runs them, and what they keep and send.
//
// Activations are those that the autograd functions of megacore.layers keep (per token, h hidden,
// e bytes per element): input of each norm and its statistics, input of each product, q, k, v, the
// output and log-sums of attention, input and output of the activation, the logits. Sequence
// parallelism divides what lies between the products, tensor parallelism the rest.
#include "planner/block_cost.h"

#include <algorithm>
#include <utility>

#include "planner/block_builder.h"

namespace megacore::planner {

PassTime& PassTime::operator+=(const PassTime& other) {
    matmul += other.matmul;
    attention += other.attention;
    memory += other.memory;
    launch += other.launch;
    tensor += other.tensor;
    context += other.context;
    data += other.data;
    tensor_hidden += other.tensor_hidden;
    context_hidden += other.context_hidden;
    data_hidden += other.data_hidden;
    return *this;
}

PassTime operator*(double factor, const PassTime& pass) {
    PassTime scaled = pass;
    for (double* part : {&scaled.matmul,
                         &scaled.attention,
                         &scaled.memory,
                         &scaled.launch,
                         &scaled.tensor,
                         &scaled.context,
                         &scaled.data,
                         &scaled.tensor_hidden,
                         &scaled.context_hidden,
                         &scaled.data_hidden}) {
        *part *= factor;
    }
    return scaled;
}

namespace {

/// Tokens of one micro-batch on a process.
double tokens_of(const Layout& layout, std::int64_t length) {
    return static_cast<double>(layout.micro_batch) * static_cast<double>(length) / layout.context;
}

void add_self_attention(BlockBuilder& b, double length, bool causal) {
    const Model& model = b.model();
    const double q = static_cast<double>(model.query_width()) / b.tensor();
    const double kv = 2.0 * static_cast<double>(model.key_width()) / b.tensor();
    b.norm();
    b.column("qkv", static_cast<double>(model.hidden), q + kv);
    if (model.learned_positions == 0) b.pointwise("rotary", 2.0 * (q + kv / 2), 2.0 * (q + kv / 2));
    b.keep((q + kv) * model.dtype_bytes);
    b.attention("attention", length, length, causal);
    b.row("proj", q, static_cast<double>(model.hidden));
    b.residual();
}

void add_cross_attention(BlockBuilder& b, double length, double source) {
    const Model& model = b.model();
    const double q = static_cast<double>(model.query_width()) / b.tensor();
    const double kv = 2.0 * static_cast<double>(model.key_width()) / b.tensor();
    b.norm();
    b.column("cross_q", static_cast<double>(model.hidden), q);
    b.side_column("cross_kv", static_cast<double>(model.hidden), kv, source / length);
    b.keep((q + kv * source / length) * model.dtype_bytes);
    b.attention("cross_attention", length, source, false);
    b.row("cross_proj", q, static_cast<double>(model.hidden));
    b.residual();
}

void add_mlp(BlockBuilder& b) {
    const Model& model = b.model();
    const double f = static_cast<double>(model.ffn) / b.tensor();
    const double inputs = model.mlp_inputs() * f;
    b.norm();
    b.column("fc1", static_cast<double>(model.hidden), inputs);
    b.keep(inputs * model.dtype_bytes);
    b.pointwise("activation", inputs + f, 2.0 * inputs + f);
    b.row("fc2", f, static_cast<double>(model.hidden));
    b.residual();
    // The gradients of input and output of the activation, that of the residual stream before and
    // after dropout, and the gathered one.
    const double split = b.split();
    const double streams = split * (model.dropout ? 2.0 : 1.0) + (split < 1.0 ? 1.0 : 0.0);
    b.transient(b.tokens() * model.dtype_bytes *
                (inputs + f + streams * static_cast<double>(model.hidden)));
}

BlockCost layer_cost(BlockBuilder b, double length, double source, bool causal) {
    add_self_attention(b, length, causal);
    if (source > 0.0) add_cross_attention(b, length, source);
    add_mlp(b);
    return b.take();
}

BlockCost embedding_cost(BlockBuilder b) {
    const Model& model = b.model();
    const auto h = static_cast<double>(model.hidden);
    const double e = model.dtype_bytes;
    b.pointwise("embedding", 2.0 * h, 3.0 * h);
    b.scattered_sum();
    if (model.learned_positions > 0) b.pointwise("positions", 2.0 * h * b.split(), h * b.split());
    if (model.dropout) {
        b.pointwise("dropout", 2.0 * h * b.split(), 2.0 * h * b.split());
    }
    b.keep(8.0);  // the tokens
    // The gradient of the table, before it is added to the others in fp32.
    const double table = static_cast<double>(model.padded_vocab(b.tensor_size())) * h / b.tensor();
    b.transient((e < 4.0 ? table * e : 0.0) + b.tokens() * h * e);
    return b.take();
}

BlockCost output_cost(BlockBuilder b) {
    const Model& model = b.model();
    const auto h = static_cast<double>(model.hidden);
    const double v = static_cast<double>(model.padded_vocab(b.tensor_size())) / b.tensor();
    const double e = model.dtype_bytes;
    b.norm();
    b.column("logits", h, v);
    b.keep(8.0);
    if (model.fused_loss) {
        // Reads the logits; backward writes their gradient in their place.
        b.keep(v * e);
        b.pointwise("cross_entropy", v, 2.0 * v);
    } else {
        // fp32 copies for the maximum, the difference, the exponentials, their sum and the
        // quotient, which is kept; backward subtracts the labels, scales and converts.
        b.keep(v * 4.0);
        b.pointwise("cross_entropy", v * (e + 36.0) / e, v * (2.0 * e + 20.0) / e);
        b.transient(b.tokens() * v * 4.0);
    }
    b.loss_sums();
    // The gradient of the matrix, before it is added to the others in fp32, and of the input.
    const double gathered = b.split() < 1.0 ? 2.0 : 1.0;
    b.transient((e < 4.0 ? v * h * e : 0.0) + gathered * b.tokens() * h * e);
    return b.take();
}

}  // namespace

BlockCosts block_costs(const Model& model,
                       const Layout& layout,
                       const Hardware& hardware,
                       bool with_ops) {
    const auto length = static_cast<double>(model.seq_length) / layout.context;
    const double tokens = tokens_of(layout, model.seq_length);
    const bool has_decoder = model.decoder_layers > 0;
    const auto builder = [&](double count) {
        return BlockBuilder(model, layout, hardware, count, with_ops);
    };
    BlockCosts costs;
    costs.layer = layer_cost(builder(tokens), length, 0.0, model.causal && !has_decoder);
    double out_tokens = tokens;
    if (has_decoder) {
        const auto target = static_cast<double>(model.decoder_length);
        out_tokens = tokens_of(layout, model.decoder_length);
        costs.decoder_layer = layer_cost(builder(out_tokens), target, length, true);
        costs.embedding = embedding_cost(builder(tokens + out_tokens));
    } else {
        costs.embedding = embedding_cost(builder(tokens));
    }
    costs.output = output_cost(builder(out_tokens));
    const bool is_split = layout.sequence_parallel || layout.scatter_transfers;
    costs.boundary_bytes = tokens * static_cast<double>(model.hidden) * model.dtype_bytes /
                           (is_split ? layout.tensor : 1);
    return costs;
}

}  // namespace megacore::planner
