/// Checks that throw: every failure says where it happened and what was expected and found.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace megacore {

/// A contract was broken by the caller. The bindings turn it into a Python exception.
class Error : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

namespace detail {

/// Throws Error with `message` followed by the source position and the failed condition.
[[noreturn]] void throw_check_failure(const char* file,
                                      int line,
                                      const char* condition,
                                      const std::string& message);

template <class... Parts>
std::string concatenate(Parts&&... parts) {
    std::ostringstream text;
    (text << ... << std::forward<Parts>(parts));
    return std::move(text).str();
}

}  // namespace detail
}  // namespace megacore

/// Throws megacore::Error unless `condition` holds. The remaining arguments are streamed into the
/// message: name the tensor or file, then what was expected and what was found.
#define MEGACORE_CHECK(condition, ...)                                                         \
    do {                                                                                       \
        if (!(condition)) [[unlikely]] {                                                       \
            ::megacore::detail::throw_check_failure(                                           \
                __FILE__, __LINE__, #condition, ::megacore::detail::concatenate(__VA_ARGS__)); \
        }                                                                                      \
    } while (false)
