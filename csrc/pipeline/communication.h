/// Transfers between the ranks of a schedule.
#pragma once

#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// Adds the SEND and RECV steps to a schedule; those that it already has are replaced.
///
/// A tensor is sent after the step that computes it, before the next compute step. Its receive is
/// posted before the `prefetch` compute steps that precede the one that needs it, and as much
/// earlier as it takes to post the receives from one rank in the order of that rank's sends (both
/// directions counted together, as a transport with one queue per pair of ranks needs it), and so
/// that no rank waits for another even if the way between two ranks holds one tensor. Neighbouring
/// stages on one rank need no transfer.
///
/// A tensor that nobody computes, or nobody needs, gets no receive; `validate` says what is wrong.
Schedule add_communication(const Schedule& schedule, int prefetch = 1);

}  // namespace megacore::pipeline
