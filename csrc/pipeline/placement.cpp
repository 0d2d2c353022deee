// Where the stages of a schedule live.
#include <algorithm>

#include "pipeline/refuse.h"
#include "pipeline/schedule.h"

namespace megacore::pipeline {
namespace {

void check_sizes(int num_ranks, int num_microbatches) {
    if (num_ranks < 1) refuse("a pipeline needs at least one rank, found ", num_ranks);
    if (num_microbatches < 1) {
        refuse("a pipeline needs at least one microbatch, found ", num_microbatches);
    }
}

}  // namespace

int Placement::num_stages() const {
    std::size_t stages = 0;
    for (const std::vector<int>& chain : chains) stages += chain.size();
    return static_cast<int>(stages);
}

int Placement::num_microbatches() const {
    int count = 0;
    for (const auto& [first, size] : microbatches) count += size;
    return count;
}

int Placement::chain_of(int stage) const {
    int first = 0;
    for (std::size_t chain = 0; chain < chains.size(); ++chain) {
        first += static_cast<int>(chains[chain].size());
        if (stage >= 0 && stage < first) return static_cast<int>(chain);
    }
    refuse("there is no stage ", stage, ": the pipeline has ", first, " stages");
}

int Placement::rank_of(int stage) const {
    int first = 0;
    const int chain = chain_of(stage);
    for (int i = 0; i < chain; ++i) {
        first += static_cast<int>(chains[static_cast<std::size_t>(i)].size());
    }
    return chains[static_cast<std::size_t>(chain)][static_cast<std::size_t>(stage - first)];
}

bool Placement::is_first(int stage) const {
    return stage == 0 || chain_of(stage - 1) != chain_of(stage);
}

bool Placement::is_last(int stage) const {
    return stage == num_stages() - 1 || chain_of(stage + 1) != chain_of(stage);
}

std::vector<int> Placement::stages_of(int rank) const {
    std::vector<int> stages;
    int stage = 0;
    for (const std::vector<int>& chain : chains) {
        for (const int where : chain) {
            if (where == rank) stages.push_back(stage);
            ++stage;
        }
    }
    return stages;
}

bool Schedule::splits_backward() const {
    return std::ranges::any_of(ranks, [](const std::vector<Action>& row) {
        return std::ranges::any_of(
            row, [](const Action& action) { return action.kind == Kind::kWeightGrad; });
    });
}

Placement plain_placement(int num_ranks, int num_microbatches) {
    return interleaved_placement(num_ranks, 1, num_microbatches);
}

Placement interleaved_placement(int num_ranks, int num_chunks, int num_microbatches) {
    check_sizes(num_ranks, num_microbatches);
    if (num_chunks < 1) refuse("a rank needs at least one model chunk, found ", num_chunks);
    std::vector<int> chain;
    for (int stage = 0; stage < num_ranks * num_chunks; ++stage) chain.push_back(stage % num_ranks);
    return {num_ranks, {chain}, {{0, num_microbatches}}};
}

Placement v_placement(int num_ranks, int num_microbatches) {
    check_sizes(num_ranks, num_microbatches);
    std::vector<int> chain;
    for (int rank = 0; rank < num_ranks; ++rank) chain.push_back(rank);
    for (int rank = num_ranks - 1; rank >= 0; --rank) chain.push_back(rank);
    return {num_ranks, {chain}, {{0, num_microbatches}}};
}

Placement mirrored_placement(int num_ranks, int num_microbatches) {
    check_sizes(num_ranks, num_microbatches);
    std::vector<int> down;
    std::vector<int> up;
    for (int rank = 0; rank < num_ranks; ++rank) {
        down.push_back(rank);
        up.push_back(num_ranks - 1 - rank);
    }
    const int first_half = (num_microbatches + 1) / 2;
    return {num_ranks, {down, up}, {{0, first_half}, {first_half, num_microbatches - first_half}}};
}

}  // namespace megacore::pipeline
