/// Schedules as text: the CSV files of torch.distributed.pipelining.
#pragma once

#include <string>
#include <string_view>

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// One line per rank, one cell per step ("0F3", "1RECV_F0", "2W1").
std::string to_csv(const Schedule& schedule);

/// The schedule that a CSV text describes, with or without SEND and RECV steps.
///
/// Empty cells are idle and dropped; "(0F1;1B0)OVERLAP_F_B" are the steps in parentheses, in that
/// order. A stage lives on the rank in whose row it appears. Stages that take the same microbatches
/// are one chain, in order of their numbers; a stage with a later range of microbatches begins
/// another chain.
///
/// @param source  file name for messages; the schedule is named after it, without folders and
///                extension
/// Throws megacore::Error that names source, row, column and what was found. Whether the schedule
/// can run is for `validate` to say.
Schedule parse_csv(std::string_view text, const std::string& source);

}  // namespace megacore::pipeline
