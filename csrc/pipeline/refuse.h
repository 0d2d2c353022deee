/// Refusals of schedules a user asked for or wrote.
#pragma once

#include "core/check.h"

namespace megacore::pipeline {

/// Throws megacore::Error with the streamed `parts` as its message: what was wanted, what is
/// possible and why. Without the source position that MEGACORE_CHECK adds for programming errors.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    throw Error(megacore::detail::concatenate(parts...));
}

}  // namespace megacore::pipeline
