#include "pipeline/stage_map.h"

#include "core/check.h"

namespace megacore::pipeline {

StageMap::StageMap(const Placement& placement) : num_ranks_(placement.num_ranks) {
    MEGACORE_CHECK(placement.chains.size() == placement.microbatches.size(),
                   "placement: expected one range of microbatches per chain, found ",
                   placement.chains.size(),
                   " chains and ",
                   placement.microbatches.size(),
                   " ranges");
    for (std::size_t c = 0; c < placement.chains.size(); ++c) {
        const std::vector<int>& chain = placement.chains[c];
        const auto [first, count] = placement.microbatches[c];
        MEGACORE_CHECK(count >= 0, "placement: chain ", c, " has ", count, " microbatches");
        for (std::size_t i = 0; i < chain.size(); ++i) {
            const int stage = num_stages();
            MEGACORE_CHECK(chain[i] >= 0 && chain[i] < num_ranks_,
                           "placement: stage ",
                           stage,
                           " is on rank ",
                           chain[i],
                           " of ",
                           num_ranks_);
            stages_.push_back({chain[i],
                               static_cast<int>(c),
                               i == 0 ? -1 : stage - 1,
                               i + 1 == chain.size() ? -1 : stage + 1,
                               first,
                               count,
                               num_slots_});
            num_slots_ += static_cast<std::size_t>(count);
        }
    }
}

}  // namespace megacore::pipeline
