/// The pattern of 1F1B and its kin on one stage.
#pragma once

#include <algorithm>
#include <vector>

#include "pipeline/action.h"

namespace megacore::pipeline {

/// `warm_up` forwards, then a forward and a backward in turn, then the backwards that are left.
inline std::vector<Action> warm_up_then_alternate(int stage,
                                                  int num_microbatches,
                                                  int warm_up,
                                                  Kind backward) {
    std::vector<Action> steps;
    steps.reserve(2 * static_cast<std::size_t>(num_microbatches));
    int forward = 0;
    for (; forward < std::min(warm_up, num_microbatches); ++forward) {
        steps.push_back({stage, Kind::kForward, forward});
    }
    for (int done = 0; done < num_microbatches; ++done) {
        if (forward < num_microbatches) steps.push_back({stage, Kind::kForward, forward++});
        steps.push_back({stage, backward, done});
    }
    return steps;
}

}  // namespace megacore::pipeline
