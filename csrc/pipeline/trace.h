/// Timelines as trace files for Perfetto (ui.perfetto.dev) and chrome://tracing.
#pragma once

#include <iosfwd>
#include <span>
#include <string>

#include "pipeline/simulate.h"

namespace megacore::pipeline {

/// One timeline of a trace file: a simulation, or a run that was recorded.
struct TraceSource {
    std::string name;
    const Timeline* timeline = nullptr;
};

/// Writes timelines of one placement in the Trace Event Format (JSON).
///
/// Each rank of each source is a process, ranks of the same number side by side; compute is one
/// thread of it, communication another (further ones where transfers overlap). Arrows follow each
/// tensor from the step that made it over send and receive to the step that uses it. The first
/// event of each source is put at 0.
///
/// Throws megacore::Error for events of stages that the placement does not have.
void write_trace(std::ostream& out,
                 const Placement& placement,
                 std::span<const TraceSource> sources);

}  // namespace megacore::pipeline
