/// A pipeline schedule: which rank does what in which order.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "pipeline/action.h"

namespace megacore::pipeline {

/// Where the stages live.
///
/// A chain is one path through the model, from its first stage to its last. Nearly every schedule
/// has one chain; DualPipe has two, which run through the ranks in opposite directions, each with a
/// full copy of the model. Stages are numbered through all chains: chain 0 has stages 0 to n0 - 1,
/// chain 1 n0 to n0 + n1 - 1. Microbatch m runs through exactly one chain.
struct Placement {
    int num_ranks = 0;
    /// Chain -> the rank of each of its stages, in order.
    std::vector<std::vector<int>> chains;
    /// Chain -> first microbatch and number of microbatches that run through it. The ranges are
    /// disjoint, ascending, and cover 0 to num_microbatches - 1.
    std::vector<std::pair<int, int>> microbatches;

    int num_stages() const;
    int num_microbatches() const;
    int rank_of(int stage) const;
    int chain_of(int stage) const;
    /// Whether it is the first (last) stage of its chain.
    bool is_first(int stage) const;
    bool is_last(int stage) const;
    /// Stages on a rank, ascending.
    std::vector<int> stages_of(int rank) const;
};

/// Stage s on rank s: one chain, one stage per rank.
Placement plain_placement(int num_ranks, int num_microbatches);
/// Stage s on rank s % num_ranks: `num_chunks` stages per rank.
Placement interleaved_placement(int num_ranks, int num_chunks, int num_microbatches);
/// Two stages per rank; the second half runs back, so first and last stage share rank 0.
Placement v_placement(int num_ranks, int num_microbatches);
/// Two chains of `num_ranks` stages in opposite directions, each with half of the microbatches; an
/// odd one goes through the first chain.
Placement mirrored_placement(int num_ranks, int num_microbatches);

/// Each rank's steps, in the order in which it takes them.
struct Schedule {
    std::string name;
    Placement placement;
    std::vector<std::vector<Action>> ranks;

    /// Whether weight gradients are computed in steps of their own, on any rank.
    bool splits_backward() const;
};

}  // namespace megacore::pipeline
