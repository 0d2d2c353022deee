/// A placement as flat arrays: constant time for what the passes over a schedule ask per step.
#pragma once

#include <cstddef>
#include <vector>

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// Neighbours, rank and microbatches of each stage. A slot is one (stage, microbatch) pair; slots
/// of a stage are consecutive.
class StageMap {
public:
    /// Throws megacore::Error when the placement does not fit itself: a rank that does not exist,
    /// or microbatches that are not given chain by chain.
    explicit StageMap(const Placement& placement);

    int num_ranks() const { return num_ranks_; }
    int num_stages() const { return static_cast<int>(stages_.size()); }
    std::size_t num_slots() const { return num_slots_; }

    int rank(int stage) const { return at(stage).rank; }
    int chain(int stage) const { return at(stage).chain; }
    /// The stage before (after) this one in its chain, or -1.
    int previous(int stage) const { return at(stage).previous; }
    int next(int stage) const { return at(stage).next; }
    int first_microbatch(int stage) const { return at(stage).first; }
    int num_microbatches(int stage) const { return at(stage).count; }

    bool has_stage(int stage) const { return stage >= 0 && stage < num_stages(); }
    bool has_slot(int stage, int microbatch) const {
        return has_stage(stage) && microbatch >= at(stage).first &&
               microbatch < at(stage).first + at(stage).count;
    }
    std::size_t slot(int stage, int microbatch) const {
        return at(stage).base + static_cast<std::size_t>(microbatch - at(stage).first);
    }

private:
    struct Stage {
        int rank;
        int chain;
        int previous;
        int next;
        int first;
        int count;
        std::size_t base;
    };

    const Stage& at(int stage) const { return stages_[static_cast<std::size_t>(stage)]; }

    std::vector<Stage> stages_;
    std::size_t num_slots_ = 0;
    int num_ranks_ = 0;
};

}  // namespace megacore::pipeline
