/// Whether ranks that take their steps in order come to their ends.
#pragma once

#include "pipeline/schedule.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {

/// The part of `validate` that looks at all ranks together, for schedules whose steps are complete.
///
/// Throws megacore::Error, with a grid, when a rank sends in another order than its peer receives,
/// and when ranks wait for each other in a OneSlotRun.
void check_runs(const Schedule& schedule, const StageMap& map, bool has_transfers);

}  // namespace megacore::pipeline
