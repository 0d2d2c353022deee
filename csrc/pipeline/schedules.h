/// The schedules that megacore knows by name.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "pipeline/schedule.h"
#include "pipeline/simulate.h"

namespace megacore::pipeline {

/// What a schedule is made for.
struct ScheduleOptions {
    int num_ranks = 1;
    int num_microbatches = 1;
    /// Stages of a chain per rank; 0 for the schedule's own number (2 for "interleaved" and the V
    /// shapes, 1 for the others). Only "interleaved" takes other numbers.
    int num_chunks = 0;
    /// "interleaved": microbatches that a rank runs through one chunk before it turns to the next,
    /// at least num_ranks; 0 for groups of nearly equal size, as small as that allows.
    int microbatch_group_size = 0;
    /// What steps cost: "zb-h1", "zb-h2", "zb-v", "v-half" and "v-min" place W by it.
    Costs costs = {};
};

/// "gpipe", "1f1b", "interleaved", "zb-h1", "zb-h2", "zb-v", "v-half", "v-min", "dualpipe",
/// "dualpipev".
const std::vector<std::string>& schedule_names();

/// The compute steps of the schedule; add_communication adds the transfers.
/// Throws megacore::Error that says why where the schedule cannot be made for the options, and
/// that lists the names where there is no such schedule.
Schedule make_schedule(std::string_view name, const ScheduleOptions& options);

}  // namespace megacore::pipeline
