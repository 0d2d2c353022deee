/// The generators behind make_schedule, one file each. Options are checked by make_schedule;
/// num_chunks holds the number of stages per rank.
#pragma once

#include "pipeline/schedules.h"

namespace megacore::pipeline {

Schedule make_gpipe(const ScheduleOptions& options);
Schedule make_one_f_one_b(const ScheduleOptions& options);
Schedule make_interleaved(const ScheduleOptions& options);
Schedule make_zb_h1(const ScheduleOptions& options);
Schedule make_zb_h2(const ScheduleOptions& options);
Schedule make_zb_v(const ScheduleOptions& options);
Schedule make_v_half(const ScheduleOptions& options);
Schedule make_v_min(const ScheduleOptions& options);
Schedule make_dualpipe(const ScheduleOptions& options);
Schedule make_dualpipev(const ScheduleOptions& options);

}  // namespace megacore::pipeline
