/// The time, the memory and the traffic of one training step in a layout.
#pragma once

#include <vector>

#include "pipeline/simulate.h"
#include "planner/block_cost.h"
#include "planner/rank_state.h"

namespace megacore::planner {

/// One micro-batch in one pipeline stage.
struct StageCost {
    PassTime forward;
    PassTime input_grad;  ///< With what is recomputed for it.
    PassTime weight_grad;
    PassTime recompute;  ///< The part of input_grad that repeats forward.
    double kept_bytes = 0.0;
    double deferred_bytes = 0.0;
    double transient_bytes = 0.0;
    double tensor_bytes = 0.0;  ///< Sent, forward and backward.
    double context_bytes = 0.0;

    double busy() const { return forward.total() + input_grad.total() + weight_grad.total(); }
};

StageCost stage_cost(const Model& model,
                     const Layout& layout,
                     const BlockCosts& blocks,
                     const StageContent& stage);

/// Seconds of a step of the busiest rank; they add up to the step.
struct Breakdown {
    double matmul = 0.0;
    double attention = 0.0;
    double memory_bound = 0.0;
    double launch = 0.0;
    double recompute = 0.0;
    double tensor = 0.0;  ///< Exposed communication.
    double context = 0.0;
    double pipeline = 0.0;
    double data = 0.0;
    double bubble = 0.0;
    double optimizer = 0.0;
    double other = 0.0;

    double total() const {
        return matmul + attention + memory_bound + launch + recompute + tensor + context +
               pipeline + data + bubble + optimizer + other;
    }
};

struct Hidden {
    double tensor = 0.0;
    double context = 0.0;
    double pipeline = 0.0;
    double data = 0.0;
};

/// Bytes of one pipeline rank at its peak.
struct RankMemory {
    RankState state;
    double activations = 0.0;
    double transient = 0.0;
    double allocator = 0.0;
    double reserve = 0.0;

    double total() const { return state.total() + activations + transient + allocator + reserve; }
};

/// Bytes that a process of one pipeline rank sends in a step.
struct Volume {
    double tensor = 0.0;
    double context = 0.0;
    double pipeline = 0.0;
    double data = 0.0;
};

struct Estimate {
    double step_s = 0.0;
    double bubble_fraction = 0.0;
    int num_microbatches = 0;
    int busiest_rank = 0;  ///< Of the pipeline.
    int fullest_rank = 0;
    Breakdown breakdown;
    Hidden hidden;
    std::vector<RankMemory> memory;  ///< By pipeline rank.
    std::vector<Volume> volume;
    double training_flops_full = 0.0;
    double training_flops_causal = 0.0;
    double recompute_flops = 0.0;

    double memory_bytes() const { return memory[static_cast<std::size_t>(fullest_rank)].total(); }
};

/// Throws megacore::Error with the reason for a layout that `refusal` refuses, or whose schedule
/// cannot be made.
Estimate estimate(const Model& model,
                  const Layout& layout,
                  const Hardware& hardware,
                  int global_batch);

/// The schedule of the layout with its costs, as `estimate` simulates it; for pictures.
pipeline::Simulation simulate_pipeline(const Model& model,
                                       const Layout& layout,
                                       const Hardware& hardware,
                                       int global_batch);

}  // namespace megacore::planner
