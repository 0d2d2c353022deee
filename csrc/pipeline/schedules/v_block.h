/// Schedules of two chunks in a V made by repeating the passes of one microbatch.
#pragma once

#include <string>

#include "pipeline/schedules.h"

namespace megacore::pipeline {

/// Time between the same pass of one microbatch on neighbouring ranks, in time units: forward of
/// the first and the second chunk, input gradient of the second and the first.
struct VBlock {
    int forward_0;
    int forward_1;
    int input_grad_1;
    int input_grad_0;
};

/// Repeats the block every six units, the work of one microbatch on a rank, and lets each rank
/// hold max_live chunk activations. Passes of different microbatches must not need a rank at the
/// same time: where they would, the block waits up to five units at a turn of the V.
Schedule repeat_v_block(std::string name,
                        const VBlock& block,
                        int max_live,
                        const ScheduleOptions& options);

}  // namespace megacore::pipeline
