// One micro-batch in a pipeline stage: its blocks, with what recompute repeats.
#include <algorithm>

#include "planner/estimate.h"

namespace megacore::planner {
namespace {

/// Adds `count` equal layers, which run backward after `freed_bytes` were let go.
void add_layers(
    StageCost& stage, const Layout& layout, const BlockCost& layer, int count, double freed_bytes) {
    if (count == 0) return;
    const double n = count;
    stage.forward += n * layer.forward;
    stage.input_grad += n * layer.input_grad;
    stage.weight_grad += n * layer.weight_grad;
    stage.tensor_bytes += n * (layer.tensor_forward_bytes + layer.tensor_backward_bytes);
    stage.context_bytes += n * (layer.context_forward_bytes + layer.context_backward_bytes);
    stage.deferred_bytes += n * layer.deferred_bytes;
    double kept = layer.kept_bytes;
    double transient = layer.transient_bytes;
    if (layout.recompute == Recompute::kSelective) {
        kept -= layer.core_bytes;
        stage.recompute += n * layer.core_again;
        stage.context_bytes += n * layer.context_forward_bytes;
        transient += layer.core_bytes;
    } else if (layout.recompute == Recompute::kFull) {
        kept = layer.input_bytes;
        stage.recompute += n * layer.forward;
        stage.tensor_bytes += n * layer.tensor_forward_bytes;
        stage.context_bytes += n * layer.context_forward_bytes;
        transient += layer.kept_bytes - layer.input_bytes;
    }
    stage.kept_bytes += n * kept;
    // By then the output layer has let go of what it kept.
    stage.transient_bytes = std::max(stage.transient_bytes, transient - freed_bytes);
}

void add_block(StageCost& stage, const BlockCost& block) {
    stage.forward += block.forward;
    stage.input_grad += block.input_grad;
    stage.weight_grad += block.weight_grad;
    stage.kept_bytes += block.kept_bytes;
    stage.deferred_bytes += block.deferred_bytes;
    stage.transient_bytes = std::max(stage.transient_bytes, block.transient_bytes);
    stage.tensor_bytes += block.tensor_forward_bytes + block.tensor_backward_bytes;
}

}  // namespace

StageCost stage_cost(const Model& model,
                     const Layout& layout,
                     const BlockCosts& blocks,
                     const StageContent& content) {
    StageCost stage;
    if (content.has_output) add_block(stage, blocks.output);
    const double freed = stage.kept_bytes;
    if (model.decoder_layers > 0) {
        add_layers(stage, layout, blocks.layer, model.layers, freed);
        add_layers(stage, layout, blocks.decoder_layer, model.decoder_layers, freed);
    } else {
        add_layers(stage, layout, blocks.layer, content.layers, freed);
    }
    if (content.has_embedding) {
        const double before = stage.transient_bytes;
        const double others = stage.kept_bytes;
        add_block(stage, blocks.embedding);
        stage.transient_bytes = std::max(before, blocks.embedding.transient_bytes - others);
    }
    stage.input_grad += stage.recompute;
    return stage;
}

}  // namespace megacore::planner
