/// The failure of data a user gave us: a missing, damaged or inconsistent file, or a full disk.
#pragma once

#include <cstring>
#include <sstream>
#include <string>
#include <utility>

#include "core/check.h"

namespace megacore::data {

/// The message is for the user: it names the file (and offset), what was expected and found.
/// The bindings raise it as megacore.errors.DataError.
class Fault : public Error {
public:
    using Error::Error;
};

/// Throws Fault with the streamed `parts` as its message.
template <class... Parts>
[[noreturn]] void fault(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw Fault(text.str());
}

/// Throws Fault for a failed system call: "<path>: cannot <action>: <reason>".
[[noreturn]] inline void system_fault(const std::string& path, const char* action, int code) {
    fault(path, ": cannot ", action, ": ", std::strerror(code));
}

}  // namespace megacore::data
