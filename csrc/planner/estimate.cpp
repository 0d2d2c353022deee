#include "planner/estimate.h"

#include <algorithm>
#include <cmath>

#include "pipeline/refuse.h"
#include "planner/step_model.h"

namespace megacore::planner {
namespace {

std::size_t index(int i) { return static_cast<std::size_t>(i); }

/// Passes of one rank in a step.
StageCost of_rank(const StepModel& step, int rank) {
    StageCost sum;
    for (const int s : step.held[index(rank)]) {
        const StageCost& stage = step.stages[index(s)];
        sum.forward += stage.forward;
        sum.input_grad += stage.input_grad;
        sum.weight_grad += stage.weight_grad;
        sum.recompute += stage.recompute;
        sum.tensor_bytes += stage.tensor_bytes;
        sum.context_bytes += stage.context_bytes;
    }
    return sum;
}

int busiest(const StepModel& step) {
    int best = 0;
    double most = -1.0;
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        const double busy = of_rank(step, static_cast<int>(r)).busy();
        if (busy > most * (1.0 + 1e-12)) {
            most = busy;
            best = static_cast<int>(r);
        }
    }
    return best;
}

double makespan_s(const PricedSchedule& priced) {
    return pipeline::simulate(priced.schedule, priced.costs).makespan_us * 1e-6;
}

void set_memory(Estimate& result,
                const Hardware& hardware,
                const StepModel& step,
                const pipeline::Simulation& simulation) {
    double most = -1.0;
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        RankMemory memory;
        memory.state = step.states[r];
        memory.activations = simulation.ranks[r].peak_bytes;
        for (const int s : step.held[r]) {
            memory.transient = std::max(memory.transient, step.stages[index(s)].transient_bytes);
        }
        memory.transient += memory.state.in_use_bytes;
        memory.allocator = hardware.allocator_slack * (memory.activations + memory.transient);
        memory.reserve = hardware.reserve_bytes;
        if (memory.total() > most) {
            most = memory.total();
            result.fullest_rank = static_cast<int>(r);
        }
        result.memory.push_back(std::move(memory));
    }
}

void set_volume(Estimate& result,
                const Model& model,
                const Layout& layout,
                const StepModel& step,
                const BlockCosts& blocks) {
    const int m = step.num_microbatches;
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        const StageCost sum = of_rank(step, static_cast<int>(r));
        const RankState& state = step.states[r];
        Volume volume;
        volume.tensor = m * sum.tensor_bytes;
        volume.context = m * sum.context_bytes;
        const double grad_bytes = gradient_element_bytes(model);
        // Sums beside those of the replicas are made of what each of them has.
        const double shards = layout.shards() ? layout.replicas() : 1.0;
        if (layout.sequence_parallel) {
            volume.tensor +=
                2.0 * shard_traffic(state.replicated / shards * grad_bytes, layout.tensor);
        }
        for (const int s : step.held[r]) {
            const int last = static_cast<int>(step.stages.size()) - 1;
            const auto elsewhere = [&](int other) {
                const auto& held = step.held[r];
                return std::find(held.begin(), held.end(), other) == held.end();
            };
            if (s > 0 && elsewhere(s - 1)) volume.pipeline += m * blocks.boundary_bytes;
            if (s < last && elsewhere(s + 1)) volume.pipeline += m * blocks.boundary_bytes;
        }
        if (state.tied_elements > 0.0) {
            volume.pipeline += 2.0 * shard_traffic(state.tied_elements / shards * grad_bytes, 2);
        }
        const int d = layout.replicas();
        const double reduce = shard_traffic(state.elements * grad_bytes, d);
        const double gather = shard_traffic(state.elements * model.dtype_bytes, d);
        switch (layout.sharding) {
            case Sharding::kNone:
                volume.data = 2.0 * reduce;
                break;
            case Sharding::kOptimizer:
                volume.data = reduce + gather;
                break;
            case Sharding::kGradients:
                volume.data = m * reduce + gather;
                break;
            case Sharding::kParameters:
                // Layers are gathered for forward and for backward, the rest once for both.
                volume.data = m * (reduce + gather * (1.0 + state.layer_elements / state.elements));
                break;
        }
        result.volume.push_back(volume);
    }
}

void set_flops(Estimate& result, const Model& model, const Layout& layout, int global_batch) {
    const double batch = global_batch;
    result.training_flops_full = training_flops(model, batch, true);
    result.training_flops_causal = training_flops(model, batch, false);
    Model bare = model;
    bare.vocab = 0;
    const double layers = training_flops(bare, batch, true) / 3.0;
    if (layout.recompute == Recompute::kFull) {
        result.recompute_flops = layers;
    } else if (layout.recompute == Recompute::kSelective && model.decoder_layers == 0) {
        result.recompute_flops = 4.0 * batch * static_cast<double>(model.seq_length) *
                                 static_cast<double>(model.seq_length * model.query_width()) *
                                 model.layers;
    }
}

}  // namespace

Estimate estimate(const Model& model,
                  const Layout& layout,
                  const Hardware& hardware,
                  int global_batch) {
    if (const auto reason = refusal(layout, model, global_batch); !reason.empty()) {
        pipeline::refuse(reason);
    }
    const BlockCosts blocks = block_costs(model, layout, hardware);
    const StepModel step = step_model(model, layout, hardware, blocks, global_batch, true);
    Estimate result;
    result.num_microbatches = step.num_microbatches;
    const int m = step.num_microbatches;

    const PricedSchedule all = priced_schedule(layout, step, true, true);
    const pipeline::Simulation simulation = pipeline::simulate(all.schedule, all.costs);
    const double makespan = simulation.makespan_us * 1e-6;
    const double without_replicas = makespan_s(priced_schedule(layout, step, false, true));
    double without_transfers = without_replicas;
    if (layout.pipeline > 1) {
        without_transfers = makespan_s(priced_schedule(layout, step, false, false));
    }

    result.busiest_rank = busiest(step);
    const StageCost rank = of_rank(step, result.busiest_rank);
    PassTime useful = rank.forward + rank.input_grad + rank.weight_grad;
    const PassTime& again = rank.recompute;
    Breakdown& parts = result.breakdown;
    parts.matmul = m * (useful.matmul - again.matmul);
    parts.attention = m * (useful.attention - again.attention);
    parts.memory_bound = m * (useful.memory - again.memory);
    parts.launch = m * (useful.launch - again.launch);
    parts.recompute = m * again.compute();
    parts.tensor = m * useful.tensor;
    parts.context = m * useful.context;
    parts.bubble = std::max(0.0, without_transfers - m * rank.busy());
    // Another order of transfers can be a little faster by chance.
    parts.pipeline = std::max(0.0, without_replicas - without_transfers);
    double tail_data = 0.0;
    double optimizer = 0.0;
    for (const ReplicaTimes& times : step.replicas) {
        const bool gathers = layout.shards() && !layout.overlap_param_gather;
        tail_data = std::max(tail_data, times.tied + (gathers ? times.gather : 0.0));
        optimizer = std::max(optimizer, times.optimizer);
    }
    parts.data = std::max(0.0, makespan - without_replicas) + tail_data;
    parts.optimizer = optimizer;
    double reduced = 0.0;
    for (const ReplicaTimes& times : step.replicas) {
        reduced = std::max(reduced, times.reduce + times.gather + times.tied);
    }
    result.hidden.tensor = m * useful.tensor_hidden;
    result.hidden.context = m * useful.context_hidden;
    result.hidden.data = std::max(0.0, reduced - parts.data);
    parts.data += result.hidden.data * hardware.overlap_cost;
    double sends = 0.0;
    for (const int s : step.held[index(result.busiest_rank)]) {
        sends += (s > 0 ? 1.0 : 0.0) + (s + 1 < static_cast<int>(step.stages.size()) ? 1.0 : 0.0);
    }
    result.hidden.pipeline =
        std::max(0.0, m * sends * (step.transfer_s + step.transfer_latency_s) - parts.pipeline);
    const double nodes =
        std::max(1.0, static_cast<double>(layout.world()) / std::max(1, hardware.gpus_per_node));
    parts.other = hardware.step_overhead_s + parts.total() * hardware.straggling * std::log2(nodes);
    result.step_s = parts.total();
    result.bubble_fraction = parts.bubble / result.step_s;
    set_memory(result, hardware, step, simulation);
    set_volume(result, model, layout, step, blocks);
    set_flops(result, model, layout, global_batch);
    return result;
}

pipeline::Simulation simulate_pipeline(const Model& model,
                                       const Layout& layout,
                                       const Hardware& hardware,
                                       int global_batch) {
    if (const auto reason = refusal(layout, model, global_batch); !reason.empty()) {
        pipeline::refuse(reason);
    }
    const BlockCosts blocks = block_costs(model, layout, hardware);
    const StepModel step = step_model(model, layout, hardware, blocks, global_batch, true);
    const PricedSchedule priced = priced_schedule(layout, step, true, true);
    return pipeline::simulate(priced.schedule, priced.costs);
}

}  // namespace megacore::planner
