/// A way to spread a run over processes, and whether the engine can run it.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pipeline/schedule.h"
#include "planner/model.h"
#include "planner/network.h"

namespace megacore::planner {

enum class Sharding : std::uint8_t { kNone, kOptimizer, kGradients, kParameters };
enum class Recompute : std::uint8_t { kNone, kSelective, kFull };

struct Layout {
    int tensor = 1;
    int pipeline = 1;
    int context = 1;
    int data = 1;
    bool sequence_parallel = false;
    int virtual_stages = 1;  ///< Stages of a chain on each rank.
    std::string schedule = "none";
    int micro_batch = 1;
    Sharding sharding = Sharding::kNone;
    Recompute recompute = Recompute::kNone;
    bool overlap_grad_reduce = false;
    bool overlap_param_gather = false;
    bool tp_comm_overlap = false;
    bool overlap_p2p = true;
    /// Stage boundaries carry 1/tensor of each activation without sequence parallelism too, and
    /// gather it on arrival (Narayanan et al. 2021, section 4.1; not in this engine).
    bool scatter_transfers = false;
    /// Layers of the first and the last stage; -1: as many as the others have.
    int first_layers = -1;
    int last_layers = -1;
    std::string order = "tp-cp-ep-dp-pp";

    int world() const { return tensor * pipeline * context * data; }
    int stages() const { return pipeline * virtual_stages; }
    int replicas() const { return data * context; }
    bool shards() const { return sharding != Sharding::kNone; }
    /// Micro-batches of one replica per step.
    int num_microbatches(int global_batch) const { return global_batch / (micro_batch * data); }
};

/// Where the ranks of one group along an axis ("tp", "cp", "dp", "pp", or "dp-cp") are.
GroupPlace place_of(const Layout& layout, std::string_view axis);

/// The schedules that the planner considers: those that training runs.
const std::vector<std::string>& planned_schedules();

/// Whether the schedule separates the gradients of the weights from those of the inputs.
bool splits_backward(std::string_view schedule);
/// Whether a rank has one stage from each half of the model, the second half in reverse.
bool is_v_shaped(std::string_view schedule);

/// Why the layout cannot be run; empty where it can. The first of the reasons, in a fixed order.
std::string_view refusal(const Layout& layout, const Model& model, int global_batch);

/// Contents of the stages of a chain. Call for legal layouts only.
std::vector<StageContent> stage_contents(const Layout& layout, const Model& model);

}  // namespace megacore::planner
