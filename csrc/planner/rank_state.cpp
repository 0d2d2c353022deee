#include "planner/rank_state.h"

#include <algorithm>
#include <cmath>

namespace megacore::planner {
namespace {

/// Elements of a bucket when gradients are reduced during backward: max(40e6, 1e6 * replicas).
std::int64_t bucket_size(const Layout& layout) {
    if (!layout.overlap_grad_reduce) return 0;
    return std::max<std::int64_t>(40'000'000, std::int64_t{1'000'000} * layout.replicas());
}

void add_counts(RankState& state,
                const Model& model,
                const Layout& layout,
                const StageContent& stage,
                bool tied_apart) {
    const auto h = static_cast<double>(model.hidden);
    const double norm = h * (model.norm_bias ? 2.0 : 1.0);
    const double rows = model.linear_bias ? h : 0.0;
    const double attentions = model.decoder_layers > 0 ? 2.0 : 1.0;
    state.replicated += model.layers > 0 ? stage.layers * 2.0 * (norm + rows) : 0.0;
    if (model.decoder_layers > 0 && stage.layers > model.layers) {
        state.replicated += (stage.layers - model.layers) * (norm + rows);
    }
    if (stage.has_output) state.replicated += norm * attentions;
    if (stage.has_embedding) state.replicated += static_cast<double>(model.learned_positions) * h;
    const bool holds_words = stage.has_embedding || stage.has_output;
    if (tied_apart && !model.untied && holds_words) {
        state.tied_elements +=
            static_cast<double>(model.padded_vocab(layout.tensor) * model.hidden) / layout.tensor;
    }
}

/// Sums of the parameters of a stage, and of those in layers.
struct Counts {
    std::int64_t all = 0;
    std::int64_t in_layers = 0;
    std::int64_t largest_unit = 0;
};

Counts count(const std::vector<comm::BucketParam>& params, int num_layers) {
    Counts counts;
    std::vector<std::int64_t> units(static_cast<std::size_t>(num_layers) + 2, 0);
    for (const auto& param : params) units[static_cast<std::size_t>(param.unit)] += param.numel;
    for (std::size_t unit = 0; unit < units.size(); ++unit) {
        counts.all += units[unit];
        if (unit > 0 && unit + 1 < units.size()) counts.in_layers += units[unit];
        counts.largest_unit = std::max(counts.largest_unit, units[unit]);
    }
    return counts;
}

/// Places every parameter as training does.
void place_stage(RankState& state,
                 const Model& model,
                 const Layout& layout,
                 const StageContent& stage,
                 bool tied_apart,
                 int shards) {
    auto params = stage_parameters(model, stage, layout.tensor, tied_apart);
    const Counts counts = count(params, stage.layers);
    // Buffers hold parameters in the order in which backward completes them.
    std::reverse(params.begin(), params.end());
    if (layout.sharding < Sharding::kGradients) {
        for (std::size_t i = 0; i < params.size(); ++i) params[i].unit = static_cast<int>(i);
    }
    const auto plan = comm::plan_buckets(params, {bucket_size(layout), shards});
    state.elements += static_cast<double>(plan.size());
    state.layer_elements += static_cast<double>(counts.in_layers);
    state.largest_unit = std::max(state.largest_unit, static_cast<double>(counts.largest_unit));
    state.buckets += static_cast<double>(plan.buckets.size());
}

/// The same without padding, from one layer.
void count_stage(RankState& state,
                 const Model& model,
                 const Layout& layout,
                 const StageContent& stage,
                 bool tied_apart) {
    StageContent one = stage;
    one.layers = 1;
    const auto params = stage_parameters(model, one, layout.tensor, tied_apart);
    const Counts counts = count(params, 1);
    const std::int64_t more = (stage.layers - 1) * counts.in_layers;
    state.elements += static_cast<double>(counts.all + more);
    state.layer_elements += static_cast<double>(counts.in_layers + more);
    state.largest_unit = std::max(state.largest_unit, static_cast<double>(counts.largest_unit));
}

}  // namespace

int gradient_element_bytes(const Model& model) {
    return model.half_gradients ? model.dtype_bytes : 4;
}

RankState rank_state(const Model& model,
                     const Layout& layout,
                     const std::vector<StageContent>& stages,
                     bool tied_apart,
                     bool exact) {
    RankState state;
    const int shards = layout.shards() ? layout.replicas() : 1;
    for (const StageContent& stage : stages) {
        if (exact || model.decoder_layers > 0) {
            place_stage(state, model, layout, stage, tied_apart, shards);
        } else {
            count_stage(state, model, layout, stage, tied_apart);
        }
        add_counts(state, model, layout, stage, tied_apart);
    }
    if (state.buckets == 0.0) set_buckets(state, layout, stages.size());
    set_state_bytes(state, model, layout);
    return state;
}

void set_state_bytes(RankState& state, const Model& model, const Layout& layout) {
    state.own_elements = state.elements / (layout.shards() ? layout.replicas() : 1);
    const double e = model.dtype_bytes;
    const double grad = gradient_element_bytes(model);
    // Layers in use: gathered, or with gradients that are not yet reduced; the next one beside it.
    const double in_use = std::min(state.elements, 2.0 * state.largest_unit);
    const bool shards_gradients = layout.sharding >= Sharding::kGradients;
    const bool shards_parameters = layout.sharding == Sharding::kParameters;
    // What is sharded is kept in fp32 only.
    state.parameter_bytes = shards_parameters ? 0.0 : e * state.elements;
    state.gradient_bytes = grad * (shards_gradients ? state.own_elements : state.elements);
    state.in_use_bytes = in_use * ((shards_parameters ? e : 0.0) + (shards_gradients ? grad : 0.0));
    const bool is_half = model.dtype_bytes < 4;
    state.main_parameter_bytes = is_half || shards_parameters ? 4.0 * state.own_elements : 0.0;
    state.main_gradient_bytes = is_half && model.half_gradients ? 4.0 * state.own_elements : 0.0;
    state.optimizer_bytes = 8.0 * state.own_elements;
}

void set_buckets(RankState& state, const Layout& layout, std::size_t num_stages) {
    const auto limit = static_cast<double>(bucket_size(layout));
    const auto buffers = static_cast<double>(num_stages);
    state.buckets = limit > 0.0 ? buffers * std::ceil(state.elements / buffers / limit) : buffers;
}

}  // namespace megacore::planner
