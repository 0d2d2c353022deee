/// The order that DualPipe and DualPipeV share.
#pragma once

#include <vector>

#include "pipeline/action.h"

namespace megacore::pipeline {

/// A step of one of the two stages of a rank; microbatches are counted per stage.
struct TwoStageStep {
    int which;  // 0: the stage that starts first
    Kind kind;
    int microbatch;
};

/// The steps of the rank that is `depth` away from the end of the pipeline at which microbatches
/// enter, of `half` ranks between there and the turn (DualPipeV) or the middle (DualPipe). Each of
/// its two stages takes `num_microbatches` microbatches, at least 2 * half.
std::vector<TwoStageStep> bidirectional_steps(int half, int depth, int num_microbatches);

}  // namespace megacore::pipeline
