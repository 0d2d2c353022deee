#include "pipeline/simulate.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "core/check.h"
#include "pipeline/picture.h"
#include "pipeline/refuse.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr double kNever = -1.0;

/// Transfers of one direction between two ranks, in order.
struct Channel {
    struct End {
        double time;
        int rank;
        std::size_t event;
    };
    std::vector<End> sends;
    std::vector<End> recvs;
    std::size_t matched = 0;
    double free_us = 0.0;
};

class Simulator {
public:
    Simulator(const Schedule& schedule, const Costs& costs)
        : schedule_(schedule),
          map_(schedule.placement),
          costs_(costs_per_stage(costs, map_.num_stages())),
          input_(map_.num_slots(), kNever),
          grad_(map_.num_slots(), kNever),
          forward_(map_.num_slots(), kNever),
          backward_(map_.num_slots(), kNever),
          weight_(map_.num_slots(), kNever),
          params_(static_cast<std::size_t>(map_.num_stages()), 0.0),
          ranks_(schedule.ranks.size()),
          activation_channels_(static_cast<std::size_t>(map_.num_stages())),
          grad_channels_(static_cast<std::size_t>(map_.num_stages())) {
        MEGACORE_CHECK(static_cast<int>(schedule.ranks.size()) == map_.num_ranks(),
                       "schedule ",
                       schedule.name,
                       ": expected a list of steps for each of ",
                       map_.num_ranks(),
                       " ranks, found ",
                       schedule.ranks.size());
        result_.ranks.resize(schedule.ranks.size());
        result_.timeline.resize(schedule.ranks.size());
        std::size_t ranks_used = 0;
        for (const auto& steps : schedule.ranks) {
            for (const Action& action : steps) explicit_ |= is_transfer(action.kind);
            result_.timeline[ranks_used++].reserve(steps.size());
        }
        MEGACORE_CHECK(!explicit_ || costs.pair_us.empty(),
                       "schedule ",
                       schedule.name,
                       ": pairs cannot be simulated together with SEND and RECV steps");
        number_channels();
    }

    Simulation run() {
        for (std::size_t r = 0; r < ranks_.size(); ++r) ready_.push_back(static_cast<int>(r));
        while (!ready_.empty()) {
            const int rank = ready_.back();
            ready_.pop_back();
            state(rank).blocked = false;
            advance(rank);
        }
        for (int r = 0; r < map_.num_ranks(); ++r) {
            if (state(r).next < steps(r).size()) report_deadlock();
        }
        for (const Channel& channel : activation_channels_) check_matched(channel);
        for (const Channel& channel : grad_channels_) check_matched(channel);
        summarize();
        return std::move(result_);
    }

private:
    struct State {
        std::size_t next = 0;
        double free_us = 0.0;
        double side_us = 0.0;  // the end of its last bucket
        bool blocked = false;
        int activations = 0;
        double bytes = 0.0;
    };

    static std::size_t index(int i) { return static_cast<std::size_t>(i); }
    State& state(int rank) { return ranks_[index(rank)]; }
    const std::vector<Action>& steps(int rank) const { return schedule_.ranks[index(rank)]; }
    RankUse& use(int rank) { return result_.ranks[index(rank)]; }

    /// Gives each pair of ranks one channel for each direction: stages between the same two ranks
    /// share it.
    void number_channels() {
        std::vector<std::pair<std::pair<int, int>, int>> pairs;
        for (int s = 0; s < map_.num_stages(); ++s) {
            if (map_.next(s) >= 0) {
                pairs.push_back({{map_.rank(s), map_.rank(map_.next(s))}, s});
            }
        }
        std::sort(pairs.begin(), pairs.end());
        channel_of_.assign(index(map_.num_stages()), 0);
        for (std::size_t i = 0; i < pairs.size(); ++i) {
            const bool shared = i > 0 && pairs[i].first == pairs[i - 1].first;
            channel_of_[index(pairs[i].second)] =
                shared ? channel_of_[index(pairs[i - 1].second)] : i;
        }
    }

    /// The channel of what leaves `stage` forward, or of the gradient that comes back to it.
    Channel& activations_from(int stage) { return activation_channels_[channel_of_[index(stage)]]; }
    Channel& gradients_to(int stage) { return grad_channels_[channel_of_[index(stage)]]; }

    void advance(int rank) {
        State& now = state(rank);
        while (now.next < steps(rank).size()) {
            const std::size_t taken = take(rank, steps(rank)[now.next]);
            if (taken == 0) {
                now.blocked = true;
                return;
            }
            now.next += taken;
        }
    }

    /// Takes one step, or a pair; returns how many, 0 when another rank has to go on first.
    std::size_t take(int rank, const Action& action) {
        check_place(rank, action);
        switch (action.kind) {
            case Kind::kForward:
                return forward(rank, action);
            case Kind::kBackward:
            case Kind::kInputGrad:
                return backward(rank, action);
            case Kind::kWeightGrad:
                return weight_grad(rank, action);
            case Kind::kReduceGrad:
            case Kind::kGatherParam:
                return bucket(rank, action);
            default:
                return transfer(rank, action);
        }
    }

    void check_place(int rank, const Action& action) const {
        const bool bucket = action.kind == Kind::kReduceGrad || action.kind == Kind::kGatherParam;
        MEGACORE_CHECK(map_.has_stage(action.stage) && map_.rank(action.stage) == rank &&
                           (bucket || map_.has_slot(action.stage, action.number)),
                       "schedule ",
                       schedule_.name,
                       ": rank ",
                       rank,
                       " has no such stage or microbatch as that of its step ",
                       to_string(action));
    }

    [[noreturn]] void misplaced(int rank, const Action& action, const char* why) const {
        refuse("schedule ",
               schedule_.name,
               ", rank ",
               rank,
               ", step ",
               ranks_[index(rank)].next,
               ": ",
               to_string(action),
               " ",
               why);
    }

    /// Where the rank's own time goes.
    void run_compute(int rank, const Action& action, double start, double end) {
        state(rank).free_us = end;
        result_.timeline[index(rank)].push_back({action, start, end});
    }

    /// When F (B or I) could start for all that other ranks do; kNever: not known yet.
    double forward_ready(int rank, const Action& action) const {
        const std::size_t slot = map_.slot(action.stage, action.number);
        if (forward_[slot] != kNever) misplaced(rank, action, "was done before");
        const bool first = map_.previous(action.stage) < 0;
        if (!first && input_[slot] == kNever) return kNever;
        return std::max(first ? 0.0 : input_[slot], params_[index(action.stage)]);
    }

    double backward_ready(int rank, const Action& action) const {
        const std::size_t slot = map_.slot(action.stage, action.number);
        if (backward_[slot] != kNever) misplaced(rank, action, "was done before");
        if (forward_[slot] == kNever) misplaced(rank, action, "comes before its F");
        return map_.next(action.stage) < 0 ? 0.0 : grad_[slot];
    }

    void do_forward(int rank, const Action& action, double start, double end) {
        forward_[map_.slot(action.stage, action.number)] = end;
        run_compute(rank, action, start, end);
        State& now = state(rank);
        now.bytes += costs_.activation_bytes[index(action.stage)];
        now.activations += 1;
        use(rank).peak_bytes = std::max(use(rank).peak_bytes, now.bytes);
        use(rank).peak_activations = std::max(use(rank).peak_activations, now.activations);
        const int next = map_.next(action.stage);
        if (next >= 0) {
            hand_over(rank, next, action.number, input_, activations_from(action.stage));
        }
    }

    void do_backward(int rank, const Action& action, double start, double end) {
        const std::size_t slot = map_.slot(action.stage, action.number);
        const std::size_t stage = index(action.stage);
        const bool full = action.kind == Kind::kBackward;
        backward_[slot] = end;
        run_compute(rank, action, start, end);
        State& now = state(rank);
        now.bytes -= costs_.activation_bytes[stage] - (full ? 0.0 : costs_.kept_bytes[stage]);
        if (full) {
            weight_[slot] = end;
            now.activations -= 1;
        }
        const int previous = map_.previous(action.stage);
        if (previous >= 0) {
            hand_over(rank, previous, action.number, grad_, gradients_to(previous));
        }
    }

    std::size_t forward(int rank, const Action& action) {
        if (const Action* backward = partner(rank, action)) return pair(rank, action, *backward);
        const double ready = forward_ready(rank, action);
        if (ready == kNever) return 0;
        const double start = std::max(state(rank).free_us, ready);
        const double cost = costs_.forward_us[index(action.stage)];
        use(rank).busy_us += cost;
        do_forward(rank, action, start, start + cost);
        return 1;
    }

    std::size_t backward(int rank, const Action& action) {
        const double ready = backward_ready(rank, action);
        if (ready == kNever) return 0;
        const std::size_t stage = index(action.stage);
        const double start = std::max(state(rank).free_us, ready);
        const double cost = action.kind == Kind::kBackward ? costs_.backward_us[stage]
                                                           : costs_.input_grad_us[stage];
        use(rank).busy_us += cost;
        do_backward(rank, action, start, start + cost);
        return 1;
    }

    /// The B that is one step with this F.
    const Action* partner(int rank, const Action& action) const {
        const std::size_t next = ranks_[index(rank)].next + 1;
        if (costs_.pair_us.empty() || next >= steps(rank).size()) return nullptr;
        const Action& other = steps(rank)[next];
        return other.kind == Kind::kBackward && other.stage != action.stage ? &other : nullptr;
    }

    std::size_t pair(int rank, const Action& ahead, const Action& back) {
        check_place(rank, back);
        const double input = forward_ready(rank, ahead);
        const double grad = backward_ready(rank, back);
        if (input == kNever || grad == kNever) return 0;
        const double start = std::max({state(rank).free_us, input, grad});
        const double cost = costs_.pair_us[index(ahead.stage)];
        use(rank).busy_us += cost;
        do_forward(rank, ahead, start, start + cost);
        do_backward(rank, back, start, start + cost);
        return 2;
    }

    std::size_t weight_grad(int rank, const Action& action) {
        const std::size_t slot = map_.slot(action.stage, action.number);
        const std::size_t stage = index(action.stage);
        if (weight_[slot] != kNever) misplaced(rank, action, "was done before, or is part of B");
        if (backward_[slot] == kNever) misplaced(rank, action, "comes before its I");
        const double start = state(rank).free_us;
        const double cost = costs_.weight_grad_us[stage];
        use(rank).busy_us += cost;
        run_compute(rank, action, start, start + cost);
        weight_[slot] = start + cost;
        state(rank).bytes -= costs_.kept_bytes[stage];
        state(rank).activations -= 1;
        return 1;
    }

    std::size_t bucket(int rank, const Action& action) {
        State& now = state(rank);
        const std::size_t stage = index(action.stage);
        const bool gather = action.kind == Kind::kGatherParam;
        now.free_us += costs_.post_us;
        const double start = std::max(now.free_us, now.side_us);
        now.side_us =
            start + (gather ? costs_.gather_param_us[stage] : costs_.reduce_grad_us[stage]);
        if (gather) params_[stage] = now.side_us;
        result_.timeline[index(rank)].push_back({action, start, now.side_us});
        return 1;
    }

    /// What was just computed on `rank` goes to `target`: at once where the target is on the same
    /// rank, by itself in a schedule without transfers.
    void hand_over(
        int rank, int target, int number, std::vector<double>& arrivals, Channel& channel) {
        const std::size_t slot = map_.slot(target, number);
        const double now = state(rank).free_us;
        if (map_.rank(target) == rank) {
            arrivals[slot] = now;
        } else if (!explicit_) {
            channel.free_us = std::max(channel.free_us, now) + costs_.transfer_us;
            arrivals[slot] = channel.free_us + costs_.latency_us;
            wake(map_.rank(target));
        }
    }

    void wake(int rank) {
        if (!state(rank).blocked) return;
        state(rank).blocked = false;
        ready_.push_back(rank);
    }

    std::size_t transfer(int rank, const Action& action) {
        const bool forwards =
            action.kind == Kind::kSendForward || action.kind == Kind::kRecvForward;
        const bool sends = action.kind == Kind::kSendForward || action.kind == Kind::kSendBackward;
        const int peer = forwards == sends ? map_.next(action.stage) : map_.previous(action.stage);
        if (peer < 0) misplaced(rank, action, "goes beyond the ends of the model");
        if (map_.rank(peer) == rank) misplaced(rank, action, "stays on its own rank");
        const std::size_t slot = map_.slot(action.stage, action.number);
        if (sends && (forwards ? forward_ : backward_)[slot] == kNever) {
            misplaced(rank, action, "sends what was not computed yet");
        }
        State& now = state(rank);
        now.free_us += costs_.post_us;
        auto& events = result_.timeline[index(rank)];
        const int upstream = forwards == sends ? action.stage : peer;
        Channel& channel = forwards ? activations_from(upstream) : gradients_to(upstream);
        (sends ? channel.sends : channel.recvs).push_back({now.free_us, rank, events.size()});
        events.push_back({action, now.free_us, now.free_us});
        match(channel, forwards);
        return 1;
    }

    /// Lets the transfers run for which both sides are there.
    void match(Channel& channel, bool forwards) {
        while (channel.matched < channel.sends.size() && channel.matched < channel.recvs.size()) {
            const Channel::End& from = channel.sends[channel.matched];
            const Channel::End& to = channel.recvs[channel.matched];
            Event& sent = result_.timeline[index(from.rank)][from.event];
            Event& received = result_.timeline[index(to.rank)][to.event];
            const int target =
                forwards ? map_.next(sent.action.stage) : map_.previous(sent.action.stage);
            MEGACORE_CHECK(
                received.action.stage == target && received.action.number == sent.action.number,
                "schedule ",
                schedule_.name,
                ": rank ",
                from.rank,
                " sends ",
                to_string(sent.action),
                " when rank ",
                to.rank,
                " waits for ",
                to_string(received.action),
                ", number ",
                channel.matched,
                " of this channel");
            const double start = std::max({from.time, to.time, channel.free_us});
            channel.free_us = start + costs_.transfer_us;
            const double arrival = channel.free_us + costs_.latency_us;
            sent.start_us = received.start_us = start;
            sent.end_us = channel.free_us;
            received.end_us = arrival;
            auto& arrivals = forwards ? input_ : grad_;
            arrivals[map_.slot(target, sent.action.number)] = arrival;
            wake(to.rank);
            ++channel.matched;
        }
    }

    void check_matched(const Channel& channel) const {
        const auto& more = channel.sends.size() > channel.matched ? channel.sends : channel.recvs;
        if (more.size() == channel.matched) return;
        const Channel::End& end = more[channel.matched];
        misplaced(end.rank,
                  result_.timeline[index(end.rank)][end.event].action,
                  "has no counterpart on the other rank");
    }

    [[noreturn]] void report_deadlock() {
        std::vector<Mark> marks;
        std::string reason;
        for (int r = 0; r < map_.num_ranks(); ++r) {
            const std::size_t next = state(r).next;
            if (next == steps(r).size()) continue;
            marks.push_back({r, next});
            if (!reason.empty()) continue;
            const Action& action = steps(r)[next];
            const bool forwards = action.kind == Kind::kForward;
            const int source = forwards ? map_.previous(action.stage) : map_.next(action.stage);
            reason = detail::concatenate("rank ",
                                         r,
                                         ", step ",
                                         next,
                                         ": ",
                                         to_string(action),
                                         " waits for ",
                                         forwards ? "the output" : "the gradient",
                                         " of stage ",
                                         source,
                                         " on rank ",
                                         map_.rank(source));
        }
        refuse("schedule ",
               schedule_.name,
               ": deadlock, no rank can go on; ",
               reason,
               "\n",
               picture(schedule_, marks));
    }

    void summarize() {
        double busy = 0.0;
        double last = 0.0;
        for (std::size_t r = 0; r < result_.ranks.size(); ++r) {
            RankUse& rank = result_.ranks[r];
            bool any = false;
            for (const Event& event : result_.timeline[r]) {
                last = std::max(last, event.end_us);
                if (!is_compute(event.action.kind)) continue;
                if (!any) rank.first_us = event.start_us;
                any = true;
                rank.last_us = event.end_us;
            }
            busy += rank.busy_us;
            result_.span_us = std::max(result_.span_us, rank.last_us - rank.first_us);
        }
        result_.makespan_us = last;
        const double total = last * static_cast<double>(result_.ranks.size());
        result_.bubble_fraction = total > 0.0 ? 1.0 - busy / total : 0.0;
    }

    const Schedule& schedule_;
    StageMap map_;
    Costs costs_;  // one value per stage
    // Slot -> when its input (gradient of its output) is there; when F, B or I, W ended.
    std::vector<double> input_;
    std::vector<double> grad_;
    std::vector<double> forward_;
    std::vector<double> backward_;
    std::vector<double> weight_;
    std::vector<double> params_;  // stage -> when its parameters are there
    std::vector<State> ranks_;
    std::vector<std::size_t> channel_of_;
    std::vector<Channel> activation_channels_;
    std::vector<Channel> grad_channels_;
    std::vector<int> ready_;
    bool explicit_ = false;
    Simulation result_;
};

}  // namespace

Simulation simulate(const Schedule& schedule, const Costs& costs) {
    return Simulator(schedule, costs).run();
}

}  // namespace megacore::pipeline
