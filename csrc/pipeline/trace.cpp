#include "pipeline/trace.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <numeric>
#include <ostream>
#include <vector>

#include "core/check.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

const char* category_of(Kind kind) {
    switch (kind) {
        case Kind::kForward:
            return "forward";
        case Kind::kBackward:
            return "backward";
        case Kind::kInputGrad:
            return "input gradient";
        case Kind::kWeightGrad:
            return "weight gradient";
        case Kind::kSendForward:
        case Kind::kSendBackward:
            return "send";
        case Kind::kRecvForward:
        case Kind::kRecvBackward:
            return "receive";
        case Kind::kReduceGrad:
            return "reduce gradients";
        case Kind::kGatherParam:
            return "gather parameters";
    }
    return "";
}

/// Colours by their names in the viewers.
const char* colour_of(Kind kind) {
    switch (kind) {
        case Kind::kForward:
            return "thread_state_running";
        case Kind::kBackward:
        case Kind::kInputGrad:
            return "thread_state_iowait";
        case Kind::kWeightGrad:
            return "thread_state_runnable";
        default:
            return "grey";
    }
}

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        if (static_cast<unsigned char>(c) < 0x20) {
            char escape[8];
            std::snprintf(escape, sizeof escape, "\\u%04x", c);
            out += escape;
        } else {
            out += c;
        }
    }
    return out + '"';
}

/// Where a tensor's way passes: a slice of some process and thread.
struct Stop {
    std::size_t process = 0;
    int thread = 0;
    int rank = -1;
    double start_us = 0.0;
};

class TraceWriter {
public:
    TraceWriter(std::ostream& out, const Placement& placement) : out_(out), map_(placement) {}

    void write(std::span<const TraceSource> sources) {
        out_ << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
        for (std::size_t i = 0; i < sources.size(); ++i) {
            write_source(sources[i], i, sources.size());
        }
        out_ << "\n]}\n";
    }

private:
    /// What a tensor passes: the step that made it, send, receive, the step that uses it.
    using Way = std::array<Stop, 4>;

    void write_source(const TraceSource& source, std::size_t number, std::size_t num_sources) {
        const Timeline& timeline = *source.timeline;
        double origin = std::numeric_limits<double>::infinity();
        for (const auto& events : timeline) {
            for (const Event& event : events) origin = std::min(origin, event.start_us);
        }
        activations_.assign(map_.num_slots(), {});
        gradients_.assign(map_.num_slots(), {});
        for (std::size_t r = 0; r < timeline.size(); ++r) {
            const std::size_t process = r * num_sources + number;
            name("process_name", process, 0, source.name + " rank " + std::to_string(r));
            begin(process, 0, 'M');
            out_ << ",\"name\":\"process_sort_index\",\"args\":{\"sort_index\":" << process << "}}";
            write_rank(timeline[r], static_cast<int>(r), process, origin);
        }
        for (const Way& way : activations_) write_way(way, "activation");
        for (const Way& way : gradients_) write_way(way, "gradient");
    }

    void write_rank(const std::vector<Event>& events,
                    int rank,
                    std::size_t process,
                    double origin) {
        const std::vector<int> threads = threads_of(events);
        const int last = threads.empty() ? 0 : *std::max_element(threads.begin(), threads.end());
        for (int t = 0; t <= last; ++t) {
            name("thread_name",
                 process,
                 t,
                 t == 0 ? "compute"
                        : (t == 1 ? "communication" : "communication " + std::to_string(t)));
        }
        for (std::size_t i = 0; i < events.size(); ++i) {
            const Event& event = events[i];
            const bool bucket = event.action.kind >= Kind::kReduceGrad;
            MEGACORE_CHECK(map_.has_stage(event.action.stage) &&
                               (bucket || map_.has_slot(event.action.stage, event.action.number)),
                           "trace: the placement has no stage or microbatch of step ",
                           to_string(event.action));
            const double start = event.start_us - origin;
            begin(process, threads[i], 'X');
            out_ << ",\"ts\":" << number(start)
                 << ",\"dur\":" << number(std::max(0.0, event.end_us - event.start_us))
                 << ",\"name\":\"" << to_string(event.action) << "\",\"cat\":\""
                 << category_of(event.action.kind) << "\",\"cname\":\""
                 << colour_of(event.action.kind) << "\",\"args\":{\"stage\":" << event.action.stage
                 << (bucket ? ",\"bucket\":" : ",\"microbatch\":") << event.action.number << "}}";
            note_stop(event.action, {process, threads[i], rank, start});
        }
    }

    /// Compute is thread 0; transfers take the first further thread that is free.
    static std::vector<int> threads_of(const std::vector<Event>& events) {
        std::vector<int> threads(events.size(), 0);
        std::vector<std::size_t> transfers;
        for (std::size_t i = 0; i < events.size(); ++i) {
            if (!is_compute(events[i].action.kind)) transfers.push_back(i);
        }
        std::stable_sort(transfers.begin(), transfers.end(), [&](std::size_t a, std::size_t b) {
            return events[a].start_us < events[b].start_us;
        });
        std::vector<double> free_us;
        for (const std::size_t i : transfers) {
            std::size_t t = 0;
            while (t < free_us.size() && free_us[t] > events[i].start_us) ++t;
            if (t == free_us.size()) free_us.push_back(0.0);
            free_us[t] = events[i].end_us;
            threads[i] = static_cast<int>(t) + 1;
        }
        return threads;
    }

    void note_stop(const Action& action, const Stop& stop) {
        const int previous = map_.previous(action.stage);
        const int next = map_.next(action.stage);
        // An activation belongs to the stage that uses it, a gradient to the one it is for.
        switch (action.kind) {
            case Kind::kForward:
                put(activations_, next, action.number, 0, stop);
                put(activations_, previous < 0 ? -1 : action.stage, action.number, 3, stop);
                break;
            case Kind::kSendForward:
                put(activations_, next, action.number, 1, stop);
                break;
            case Kind::kRecvForward:
                put(activations_, action.stage, action.number, 2, stop);
                break;
            case Kind::kBackward:
            case Kind::kInputGrad:
                put(gradients_, previous, action.number, 0, stop);
                put(gradients_, next < 0 ? -1 : action.stage, action.number, 3, stop);
                break;
            case Kind::kSendBackward:
                put(gradients_, previous, action.number, 1, stop);
                break;
            case Kind::kRecvBackward:
                put(gradients_, action.stage, action.number, 2, stop);
                break;
            default:
                break;
        }
    }

    void put(std::vector<Way>& ways, int stage, int number, std::size_t place, const Stop& stop) {
        if (stage >= 0) ways[map_.slot(stage, number)][place] = stop;
    }

    void write_way(const Way& way, const char* what) {
        if (way[0].rank == way[3].rank || way[0].rank < 0 || way[3].rank < 0) return;
        ++num_ways_;
        for (std::size_t i = 0; i < way.size(); ++i) {
            if (way[i].rank < 0) continue;
            begin(way[i].process, way[i].thread, i == 0 ? 's' : (i == 3 ? 'f' : 't'));
            out_ << ",\"ts\":" << number(way[i].start_us) << ",\"id\":" << num_ways_
                 << ",\"name\":\"" << what << "\",\"cat\":\"transfer\""
                 << (i == 3 ? ",\"bp\":\"e\"}" : "}");
        }
    }

    void name(const char* what, std::size_t process, int thread, const std::string& text) {
        begin(process, thread, 'M');
        out_ << ",\"name\":\"" << what << "\",\"args\":{\"name\":" << quoted(text) << "}}";
    }

    void begin(std::size_t process, int thread, char phase) {
        out_ << (first_ ? "\n" : ",\n") << "{\"ph\":\"" << phase << "\",\"pid\":" << process
             << ",\"tid\":" << thread;
        first_ = false;
    }

    /// Microseconds down to nanoseconds, whatever the locale of the stream.
    static std::string number(double us) {
        const auto ns = static_cast<std::int64_t>(us * 1000.0 + 0.5);
        char text[40];
        std::snprintf(text,
                      sizeof text,
                      "%lld.%03lld",
                      static_cast<long long>(ns / 1000),
                      static_cast<long long>(ns % 1000));
        return text;
    }

    std::ostream& out_;
    StageMap map_;
    std::vector<Way> activations_;
    std::vector<Way> gradients_;
    std::uint64_t num_ways_ = 0;
    bool first_ = true;
};

}  // namespace

void write_trace(std::ostream& out,
                 const Placement& placement,
                 std::span<const TraceSource> sources) {
    TraceWriter(out, placement).write(sources);
}

}  // namespace megacore::pipeline
