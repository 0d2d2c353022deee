#include "planner/layout.h"

#include <algorithm>

namespace megacore::planner {
namespace {

int degree(const Layout& layout, std::string_view axis) {
    if (axis == "tp") return layout.tensor;
    if (axis == "cp") return layout.context;
    if (axis == "dp") return layout.data;
    if (axis == "pp") return layout.pipeline;
    return 1;
}

std::string_view pipeline_refusal(const Layout& layout, const Model& model, int num_microbatches) {
    const bool is_interleaved = layout.schedule == "interleaved";
    if (layout.pipeline == 1) {
        if (layout.schedule != "none" || layout.virtual_stages != 1) {
            return "a schedule needs more than one pipeline rank";
        }
        return {};
    }
    const auto& known = planned_schedules();
    if (std::find(known.begin(), known.end(), layout.schedule) == known.end()) {
        return "no such pipeline schedule";
    }
    if (model.decoder_layers > 0) return "encoder-decoder models are not pipelined";
    if (is_interleaved != (layout.virtual_stages > 1) && !is_v_shaped(layout.schedule)) {
        return "several stages per rank are for interleaved and V schedules";
    }
    if (is_v_shaped(layout.schedule) && layout.virtual_stages != 2) {
        return "V schedules have two stages per rank";
    }
    const int stages = layout.stages();
    const int given = (layout.first_layers >= 0 ? 1 : 0) + (layout.last_layers >= 0 ? 1 : 0);
    const int rest =
        model.layers - std::max(0, layout.first_layers) - std::max(0, layout.last_layers);
    if (rest < 0 || (stages > given ? rest % (stages - given) : rest) != 0) {
        return "layers do not divide among the pipeline stages";
    }
    if (rest == 0 && stages > given) return "a stage would have no layer";
    if (num_microbatches < layout.pipeline && is_interleaved) {
        return "fewer micro-batches than pipeline ranks";
    }
    if (layout.sharding >= Sharding::kGradients && splits_backward(layout.schedule)) {
        return "sharded gradients need a schedule that does not split the backward pass";
    }
    return {};
}

}  // namespace

GroupPlace place_of(const Layout& layout, std::string_view axis) {
    const bool joined = axis == "dp-cp";
    int stride = 1;
    int first_stride = 0;
    std::string_view rest = layout.order;
    while (!rest.empty()) {
        const auto end = rest.find('-');
        const std::string_view name = rest.substr(0, end);
        if (joined ? name == "dp" || name == "cp" : name == axis) {
            if (degree(layout, name) > 1 && first_stride == 0) first_stride = stride;
        }
        stride *= degree(layout, name);
        rest = end == std::string_view::npos ? std::string_view() : rest.substr(end + 1);
    }
    const int size = joined ? layout.replicas() : degree(layout, axis);
    return {size, std::max(1, first_stride)};
}

const std::vector<std::string>& planned_schedules() {
    static const std::vector<std::string> names{
        "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "dualpipev", "gpipe"};
    return names;
}

bool is_v_shaped(std::string_view schedule) {
    return schedule == "zb-v" || schedule == "v-half" || schedule == "v-min" ||
           schedule == "dualpipev";
}

bool splits_backward(std::string_view schedule) {
    return schedule == "zb-h1" || schedule == "zb-h2" || is_v_shaped(schedule);
}

std::string_view refusal(const Layout& layout, const Model& model, int global_batch) {
    const int t = layout.tensor;
    if (std::min({t, layout.pipeline, layout.context, layout.data, layout.virtual_stages}) < 1) {
        return "every degree must be at least 1";
    }
    if (global_batch < 1 || layout.micro_batch < 1 ||
        global_batch % (layout.micro_batch * layout.data) != 0) {
        return "global batch is not a multiple of micro-batch times data-parallel size";
    }
    if (model.heads % t != 0) return "attention heads do not divide by tensor parallelism";
    if (model.groups % t != 0) return "query groups do not divide by tensor parallelism";
    if (model.ffn % t != 0) return "MLP width does not divide by tensor parallelism";
    if (layout.sequence_parallel && t == 1) return "sequence parallelism needs tensor parallelism";
    if (layout.context > 1) {
        if (model.decoder_layers > 0 || !model.causal) {
            return "context parallelism needs causal attention";
        }
        if (model.seq_length % (2 * layout.context) != 0) {
            return "sequence does not divide by twice the context-parallel size";
        }
        if (!model.flash) return "context parallelism needs flash attention";
    }
    if (layout.sequence_parallel) {
        const std::int64_t part = static_cast<std::int64_t>(layout.context) * t;
        if (model.seq_length % part != 0 || model.decoder_length % part != 0) {
            return "sequence does not divide by context times tensor parallelism";
        }
    }
    if (layout.tp_comm_overlap && !layout.sequence_parallel) {
        return "overlap of tensor-parallel communication needs sequence parallelism";
    }
    if (layout.overlap_param_gather && !(layout.shards() && layout.overlap_grad_reduce)) {
        return "overlap of the parameter gather needs a sharded optimizer and overlapped reduction";
    }
    return pipeline_refusal(layout, model, layout.num_microbatches(global_batch));
}

std::vector<StageContent> stage_contents(const Layout& layout, const Model& model) {
    const int stages = layout.stages();
    std::vector<StageContent> contents(static_cast<std::size_t>(stages));
    const int given = (layout.first_layers >= 0 ? 1 : 0) + (layout.last_layers >= 0 ? 1 : 0);
    const int rest =
        model.total_layers() - std::max(0, layout.first_layers) - std::max(0, layout.last_layers);
    const int equal = stages > given ? rest / (stages - given) : 0;
    for (StageContent& stage : contents) stage.layers = equal;
    if (layout.first_layers >= 0) contents.front().layers = layout.first_layers;
    if (layout.last_layers >= 0) contents.back().layers = layout.last_layers;
    contents.front().has_embedding = true;
    contents.back().has_output = true;
    return contents;
}

}  // namespace megacore::planner
