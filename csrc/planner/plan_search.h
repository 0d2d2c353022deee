/// The best layouts of a run on a cluster.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "planner/estimate.h"

namespace megacore::planner {

/// The values to try along each axis. All combinations are considered.
struct SearchSpace {
    int gpus = 1;
    int global_batch = 1;
    double memory_bytes = 0.0;  ///< That a plan may use, reserve and slack included.
    std::vector<int> tensor{1};
    std::vector<int> pipeline{1};
    std::vector<int> context{1};
    std::vector<int> micro_batch{1};
    std::vector<int> virtual_stages{1};  ///< Of "interleaved"; the others know their own.
    std::vector<std::string> schedules{"1f1b"};
    std::vector<bool> sequence_parallel{false};
    std::vector<bool> tp_comm_overlap{false};
    std::vector<Sharding> sharding{Sharding::kNone};
    std::vector<Recompute> recompute{Recompute::kNone};
    std::vector<bool> overlap_grad_reduce{false};
    std::vector<bool> overlap_param_gather{false};
    std::string order = "tp-cp-ep-dp-pp";
    int top = 10;
    /// Schedules that may be simulated in search of the best `top`.
    int max_simulations = 4000;
};

/// Layouts that cannot be used for one reason.
struct Rejection {
    std::string reason;
    std::int64_t count = 0;
    Layout example;
};

/// The best layout with one value along one axis, for comparison with the best of all.
struct Alternative {
    std::string axis;
    std::string value;
    Layout layout;
    Estimate estimate;
};

struct SearchResult {
    std::vector<std::pair<Layout, Estimate>> plans;  ///< Best first.
    std::vector<Rejection> rejections;
    std::vector<Alternative> alternatives;
    std::int64_t considered = 0;
    std::int64_t legal = 0;
    std::int64_t fitting = 0;
    std::int64_t simulated = 0;
    /// Whether max_simulations ended the search before it had proof that nothing is better.
    bool cut_short = false;
};

/// Every layout gets a lower bound of its time from its costs, without its schedule; in the order
/// of that bound they are simulated, until no other bound is below the times of the best `top`. So
/// the result is that of simulating all of them.
SearchResult search(const Model& model, const Hardware& hardware, const SearchSpace& space);

}  // namespace megacore::planner
