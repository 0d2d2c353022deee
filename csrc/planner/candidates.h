/// The layouts of a search space, each with a lower bound of its time.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "planner/plan_search.h"
#include "planner/step_model.h"

namespace megacore::planner {

/// A legal layout that may fit into memory, in few bytes: there are millions.
struct Candidate {
    double bound_s = 0.0;
    std::int32_t family = 0;  ///< Index of the layout without sharding, recompute and overlaps.
    Sharding sharding = Sharding::kNone;
    Recompute recompute = Recompute::kNone;
    bool overlap_grad_reduce = false;
    bool overlap_param_gather = false;
};

/// Goes through a search space.
class Candidates {
public:
    Candidates(const Model& model, const Hardware& hardware, const SearchSpace& space);

    /// Sorted by bound.
    const std::vector<Candidate>& list() const { return list_; }
    Layout layout_of(const Candidate& candidate) const;
    /// The counts and rejections.
    SearchResult& counts() { return counts_; }
    void reject(const std::string& reason, const Layout& example);

private:
    void add_degrees();
    void add_micro_batches(Layout layout);
    void add_schedules(Layout layout, const BlockCosts& blocks);
    void add_variants(Layout layout, const BlockCosts& blocks);
    void add_candidate(const Layout& layout, const StepModel& step, double pipeline_s);
    void reject_variants(const std::string& reason, const Layout& layout);
    std::int64_t num_variants() const;
    /// Activations of a share of the layers that each rank holds at the peak, at least.
    const std::vector<double>& in_flight(const Layout& layout, int num_microbatches);

    const Model& model_;
    const Hardware& hardware_;
    const SearchSpace& space_;
    std::vector<Layout> families_;
    std::vector<Candidate> list_;
    SearchResult counts_;
    std::map<std::string, std::size_t> rejection_of_;
    std::map<std::tuple<std::string, int, int, int>, std::vector<double>> in_flight_;
};

}  // namespace megacore::planner
