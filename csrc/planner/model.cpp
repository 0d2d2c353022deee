#include "planner/model.h"

namespace megacore::planner {
namespace {

/// Collects parameters; the unit is the layer that they belong to.
class Collector {
public:
    explicit Collector(int tensor) : tensor_(tensor) {}

    void split(std::int64_t numel) { add(numel / tensor_, 0); }
    void split_vector(std::int64_t numel) { add(numel / tensor_, 1); }
    void whole(std::int64_t numel) { add(numel, 0); }
    void vector(std::int64_t numel) { add(numel, 1); }
    void alone(std::int64_t numel) {
        split(numel);
        params_.back().alone = true;
    }
    void next_unit() { ++unit_; }
    std::vector<comm::BucketParam> take() { return std::move(params_); }

private:
    void add(std::int64_t numel, int key) { params_.push_back({numel, key, unit_, false}); }

    std::vector<comm::BucketParam> params_;
    std::int64_t tensor_;
    int unit_ = 0;
};

void add_norm(Collector& to, const Model& model) {
    to.vector(model.hidden);
    if (model.norm_bias) to.vector(model.hidden);
}

void add_attention(Collector& to, const Model& model, bool cross) {
    const std::int64_t q = model.query_width();
    const std::int64_t kv = 2 * model.key_width();
    add_norm(to, model);
    if (cross) {
        to.split(model.hidden * q);
        if (model.qkv_bias) to.split_vector(q);
        to.split(model.hidden * kv);
        if (model.qkv_bias) to.split_vector(kv);
    } else {
        to.split(model.hidden * (q + kv));
        if (model.qkv_bias) to.split_vector(q + kv);
    }
    to.split(q * model.hidden);
    if (model.linear_bias) to.vector(model.hidden);
}

void add_layer(Collector& to, const Model& model, bool cross) {
    to.next_unit();
    add_attention(to, model, false);
    if (cross) add_attention(to, model, true);
    add_norm(to, model);
    to.split(model.mlp_inputs() * model.ffn * model.hidden);
    if (model.linear_bias) to.split_vector(model.mlp_inputs() * model.ffn);
    to.split(model.ffn * model.hidden);
    if (model.linear_bias) to.vector(model.hidden);
}

/// Multiply-adds per token of one layer, without those of the scores.
double layer_products(const Model& model, bool cross) {
    const auto h = static_cast<double>(model.hidden);
    const auto q = static_cast<double>(model.query_width());
    const auto kv = 2.0 * static_cast<double>(model.key_width());
    const double attention = h * (q + kv) + q * h;
    const double mlp = h * static_cast<double>(model.ffn) * (model.mlp_inputs() + 1);
    return (cross ? 2.0 : 1.0) * attention + mlp;
}

}  // namespace

std::int64_t Model::padded_vocab(int tensor) const {
    const std::int64_t multiple = vocab_divisor * tensor;
    return (vocab + multiple - 1) / multiple * multiple;
}

std::vector<comm::BucketParam> stage_parameters(const Model& model,
                                                const StageContent& stage,
                                                int tensor,
                                                bool tied_apart) {
    Collector params(tensor);
    const std::int64_t words = model.padded_vocab(tensor) * model.hidden;
    const bool apart = !model.untied && tied_apart;
    if (stage.has_embedding) {
        if (apart) {
            params.alone(words);
        } else {
            params.split(words);
        }
        if (model.learned_positions > 0) params.whole(model.learned_positions * model.hidden);
    }
    // Which of the layers a stage has does not matter unless they differ.
    const bool has_decoder = model.decoder_layers > 0;
    for (int i = 0; i < stage.layers; ++i) {
        add_layer(params, model, has_decoder && i >= model.layers);
    }
    params.next_unit();
    if (stage.has_output) {
        add_norm(params, model);
        if (has_decoder) add_norm(params, model);
        if (model.untied) {
            params.split(words);
        } else if (tied_apart && !stage.has_embedding) {
            params.alone(words);
        }
    }
    return params.take();
}

std::int64_t count_parameters(const Model& model) {
    std::int64_t count = 0;
    for (const auto& param : stage_parameters(model, {model.total_layers(), true, true}, 1, false))
        count += param.numel;
    return count;
}

double training_flops(const Model& model, double batch, bool full_attention) {
    const auto q = static_cast<double>(model.query_width());
    const auto s = static_cast<double>(model.seq_length);
    const auto d = static_cast<double>(model.decoder_length);
    const double mask = model.causal && !full_attention ? 0.5 : 1.0;
    const double decoder_mask = full_attention ? 1.0 : 0.5;
    const bool has_decoder = model.decoder_layers > 0;
    // Two products with the scores, of s x s per head each.
    double products = model.layers * s *
                      (layer_products(model, false) + 2.0 * q * s * (has_decoder ? 1.0 : mask));
    if (has_decoder) {
        // The keys and values of cross attention are made of the encoder's tokens.
        const double kv = 2.0 * static_cast<double>(model.hidden * model.key_width());
        products += model.decoder_layers * (d * (layer_products(model, true) - kv) + s * kv +
                                            2.0 * q * d * (d * decoder_mask + s));
    }
    const double out = has_decoder ? d : s;
    products += out * static_cast<double>(model.hidden * model.padded_vocab(1));
    return 6.0 * batch * products;
}

}  // namespace megacore::planner
