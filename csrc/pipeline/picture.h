/// Schedules as text for error messages.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// A step to point at; one past the last is the end of the rank's list.
struct Mark {
    int rank = 0;
    std::size_t step = 0;
};

/// A row per rank, a column per step, marked steps in brackets. Of wide and tall schedules the part
/// around the first mark.
std::string picture(const Schedule& schedule, const std::vector<Mark>& marks);

}  // namespace megacore::pipeline
