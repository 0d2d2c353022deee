/// What estimate and search share: the parts of a step before the schedule is run.
#pragma once

#include <vector>

#include "pipeline/costs.h"
#include "pipeline/schedule.h"
#include "planner/estimate.h"

namespace megacore::planner {

/// Communication of one rank with its replicas, once per step.
struct ReplicaTimes {
    double reduce = 0.0;
    double gather = 0.0;
    double tied = 0.0;  ///< Sum of the tied embedding's gradients.
    double optimizer = 0.0;
};

/// Everything that does not depend on the order of steps.
struct StepModel {
    std::vector<StageCost> stages;       ///< By stage of the chain.
    std::vector<std::vector<int>> held;  ///< Rank -> its stages.
    std::vector<RankState> states;       ///< By rank.
    std::vector<ReplicaTimes> replicas;  ///< By rank.
    double transfer_s = 0.0;
    double transfer_latency_s = 0.0;
    int num_microbatches = 1;
};

/// Rank -> its stages, for the placement of the layout's schedule.
std::vector<std::vector<int>> held_stages(const Layout& layout);

/// @param exact  place parameters as training does, else count elements only
StepModel step_model(const Model& model,
                     const Layout& layout,
                     const Hardware& hardware,
                     const BlockCosts& blocks,
                     int global_batch,
                     bool exact);

/// The compute steps of the layout's schedule with the buckets of the replicas, and their costs.
struct PricedSchedule {
    pipeline::Schedule schedule;
    pipeline::Costs costs;
};

/// @param with_replicas  let gathers and reductions run beside the compute
/// @param with_transfers  let tensors take time from rank to rank
PricedSchedule priced_schedule(const Layout& layout,
                               const StepModel& step,
                               bool with_replicas,
                               bool with_transfers);

/// Less than any schedule takes (seconds, without optimizer and replicas): each rank computes all
/// its passes, after the first micro-batch has come to it and before the last gradient has left.
double least_pipeline_time(const Layout& layout, const StepModel& step);

/// The same with the gather before the first pass and the reduction after the last one that the
/// passes of their own stage cannot cover; of some ranks only, to be fast.
double least_replica_time(const Layout& layout, const StepModel& step);

/// Sets states and replicas for other sharding and overlaps, from the elements that are known.
void refresh_replicas(const Model& model,
                      const Layout& layout,
                      const Hardware& hardware,
                      StepModel& step);

/// Seconds after the last pass of all ranks, and gathers before the first, that nothing hides.
double replica_tail(const Layout& layout, const StepModel& step);

}  // namespace megacore::planner
