// Interleaved 1F1B (Narayanan et al. 2021, arXiv 2104.04473, section 2.2.2).
//
// Each rank holds V chunks of the model, stage s on rank s mod P, and runs a group of microbatches
// through one chunk, then through the next. The pipeline fills after P small chunks instead of P
// large stages: idle time (P - 1)(F + B) / V. A rank holds up to (V - 1) G + 2 (P - 1) + 1 small
// activations, G being the size of a group.
//
// A group of at least P microbatches comes back to the first rank, for its next chunk, when that
// is free. Numbers of microbatches that P does not divide are split into groups as equal as
// possible (G < 2 P), or, for a chosen G, have a smaller last group; its missing microbatches are
// left out of the order of a full one, which keeps every order that remains.
#include <algorithm>

#include "pipeline/refuse.h"
#include "pipeline/schedules/generators.h"
#include "pipeline/schedules/warm_up.h"

namespace megacore::pipeline {
namespace {

/// Sizes of the groups, never growing; all but the first may be counted on to be at least P. Their
/// sum exceeds the number of microbatches where the last group is not full.
std::vector<int> group_sizes(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int count = options.num_microbatches;
    if (const int size = options.microbatch_group_size; size > 0) {
        return std::vector<int>(static_cast<std::size_t>((count + size - 1) / size), size);
    }
    if (count < ranks) return {ranks};
    const int groups = count / ranks;
    std::vector<int> sizes(static_cast<std::size_t>(groups), count / groups);
    for (int i = 0; i < count % groups; ++i) ++sizes[static_cast<std::size_t>(i)];
    return sizes;
}

struct Turn {
    int chunk;
    int microbatch;
};

/// The order in which a rank takes (chunk, microbatch) pairs; backward passes go through the
/// chunks from the last.
std::vector<Turn> turns(const std::vector<int>& groups, int num_chunks, bool backward) {
    std::vector<Turn> order;
    int first = 0;
    for (const int size : groups) {
        for (int chunk = 0; chunk < num_chunks; ++chunk) {
            for (int i = 0; i < size; ++i) {
                order.push_back({backward ? num_chunks - 1 - chunk : chunk, first + i});
            }
        }
        first += size;
    }
    return order;
}

}  // namespace

Schedule make_interleaved(const ScheduleOptions& options) {
    const int ranks = options.num_ranks;
    const int chunks = options.num_chunks;
    const int count = options.num_microbatches;
    if (options.microbatch_group_size != 0 && options.microbatch_group_size < ranks) {
        refuse("schedule interleaved: groups of ",
               options.microbatch_group_size,
               " microbatches are too small for ",
               ranks,
               " ranks: the first rank turns to its second chunk after one group, and the group "
               "comes back from the last rank after ",
               ranks,
               " microbatches at the earliest; choose a microbatch group size of at least ",
               ranks);
    }
    Schedule schedule{"interleaved", interleaved_placement(ranks, chunks, count), {}};
    const std::vector<int> groups = group_sizes(options);
    const std::vector<Turn> forwards = turns(groups, chunks, false);
    const std::vector<Turn> backwards = turns(groups, chunks, true);
    const auto total = forwards.size();
    for (int rank = 0; rank < ranks; ++rank) {
        std::vector<Action> steps;
        steps.reserve(2 * static_cast<std::size_t>(count) * static_cast<std::size_t>(chunks));
        const auto add = [&](Kind kind, const Turn& turn) {
            if (turn.microbatch >= count) return;
            steps.push_back({turn.chunk * ranks + rank, kind, turn.microbatch});
        };
        // Twice the ranks behind: the first backward crosses them forth and back while this rank
        // runs one forward per hop. With one chunk this is 1F1B, whose rank can wait instead.
        const int hops = chunks == 1 ? ranks - 1 - rank : 2 * (ranks - 1 - rank);
        const auto warm_up =
            std::min(total, static_cast<std::size_t>(hops + (chunks - 1) * groups.front()));
        for (std::size_t i = 0; i < warm_up; ++i) add(Kind::kForward, forwards[i]);
        for (std::size_t i = 0; i < total; ++i) {
            if (i + warm_up < total) add(Kind::kForward, forwards[i + warm_up]);
            add(Kind::kBackward, backwards[i]);
        }
        schedule.ranks.push_back(std::move(steps));
    }
    return schedule;
}

}  // namespace megacore::pipeline
