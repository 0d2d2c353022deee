#include "pipeline/schedules.h"

#include <array>
#include <cstdint>

#include "pipeline/refuse.h"
#include "pipeline/schedules/generators.h"

namespace megacore::pipeline {
namespace {

struct Entry {
    std::string_view name;
    Schedule (*make)(const ScheduleOptions&);
    int num_chunks;
};

constexpr std::string_view kInterleaved = "interleaved";

constexpr std::array<Entry, 10> kSchedules{{
    {"gpipe", make_gpipe, 1},
    {"1f1b", make_one_f_one_b, 1},
    {kInterleaved, make_interleaved, 2},
    {"zb-h1", make_zb_h1, 1},
    {"zb-h2", make_zb_h2, 1},
    {"zb-v", make_zb_v, 2},
    {"v-half", make_v_half, 2},
    {"v-min", make_v_min, 2},
    {"dualpipe", make_dualpipe, 1},
    {"dualpipev", make_dualpipev, 2},
}};

/// Plans beyond this size are mistakes: their lists alone would fill gigabytes.
constexpr std::int64_t kMaxSteps = std::int64_t{1} << 27;

const Entry& entry_of(std::string_view name) {
    std::string known;
    for (const Entry& entry : kSchedules) {
        if (entry.name == name) return entry;
        if (!known.empty()) known += ", ";
        known += entry.name;
    }
    refuse("there is no schedule '", name, "'; expected one of ", known);
}

}  // namespace

const std::vector<std::string>& schedule_names() {
    static const std::vector<std::string> names = [] {
        std::vector<std::string> list;
        for (const Entry& entry : kSchedules) list.emplace_back(entry.name);
        return list;
    }();
    return names;
}

Schedule make_schedule(std::string_view name, const ScheduleOptions& options) {
    const Entry& entry = entry_of(name);
    ScheduleOptions checked = options;
    if (options.num_chunks == 0) checked.num_chunks = entry.num_chunks;
    if (checked.num_chunks != entry.num_chunks && name != kInterleaved) {
        refuse("schedule ",
               name,
               ": it has ",
               entry.num_chunks,
               " model chunk(s) per rank, found ",
               options.num_chunks,
               "; only interleaved takes other numbers");
    }
    if (options.microbatch_group_size != 0 && name != kInterleaved) {
        refuse("schedule ",
               name,
               ": a microbatch group size (",
               options.microbatch_group_size,
               ") is only used by interleaved");
    }
    if (options.num_ranks < 1 || options.num_microbatches < 1 || checked.num_chunks < 1 ||
        options.microbatch_group_size < 0) {
        refuse("schedule ",
               name,
               ": expected at least one rank, one microbatch and one model chunk, found ",
               options.num_ranks,
               " ranks, ",
               options.num_microbatches,
               " microbatches, ",
               checked.num_chunks,
               " chunks and microbatch groups of ",
               options.microbatch_group_size);
    }
    const double steps = 3.0 * options.num_ranks * options.num_microbatches * checked.num_chunks;
    if (steps > static_cast<double>(kMaxSteps)) {
        refuse("schedule ", name, ": ", steps, " steps are more than ", kMaxSteps);
    }
    return entry.make(checked);
}

}  // namespace megacore::pipeline
