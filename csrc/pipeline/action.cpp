#include "pipeline/action.h"

#include <array>
#include <charconv>
#include <utility>

#include "pipeline/refuse.h"

namespace megacore::pipeline {
namespace {

/// Names in the order of Kind.
constexpr std::array<std::string_view, 10> kNames = {
    "F", "B", "I", "W", "SEND_F", "RECV_F", "SEND_B", "RECV_B", "REDUCE_GRAD", "GATHER_PARAM"};

/// Reads the digits at the front of `text` into `value` and returns what follows them; nothing is
/// read, and `ok` becomes false, where there are none or the number is too large.
std::string_view take_number(std::string_view text, std::int32_t& value, bool& ok) {
    if (text.empty() || text.front() < '0' || text.front() > '9') {
        ok = false;
        return text;
    }
    const char* const end = text.data() + text.size();
    const auto [rest, failure] = std::from_chars(text.data(), end, value);
    ok = ok && failure == std::errc{};
    return {rest, static_cast<std::size_t>(end - rest)};
}

}  // namespace

std::string_view kind_name(Kind kind) { return kNames[static_cast<std::size_t>(kind)]; }

std::string to_string(const Action& action) {
    std::string text = std::to_string(action.stage);
    text += kind_name(action.kind);
    text += std::to_string(action.number);
    return text;
}

Action parse_action(std::string_view text) {
    Action action;
    bool ok = true;
    const std::string_view rest = take_number(text, action.stage, ok);
    const std::string_view name = rest.substr(0, rest.find_first_of("0123456789"));
    const std::string_view tail = take_number(rest.substr(name.size()), action.number, ok);
    bool known = false;
    for (std::size_t i = 0; i < kNames.size(); ++i) {
        if (kNames[i] != name) continue;
        action.kind = static_cast<Kind>(i);
        known = true;
    }
    if (!ok || !known || !tail.empty()) {
        refuse(
            "'",
            text,
            "' is no step of a schedule: expected STAGE KIND NUMBER without spaces, such as 0F3, "
            "1RECV_F0 or 2W1");
    }
    return action;
}

}  // namespace megacore::pipeline
