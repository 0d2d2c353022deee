#include "core/check.h"

#include <cstring>

namespace megacore::detail {

void throw_check_failure(const char* file,
                         int line,
                         const char* condition,
                         const std::string& message) {
    // Only the path inside the source tree: build machines' folders are noise to a reader.
    const char* inside = std::strstr(file, "csrc/");
    throw Error(
        concatenate(message, " [", inside ? inside : file, ":", line, ": ", condition, "]"));
}

}  // namespace megacore::detail
