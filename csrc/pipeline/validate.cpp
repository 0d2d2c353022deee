#include "pipeline/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string_view>
#include <utility>

#include "pipeline/deadlock.h"
#include "pipeline/picture.h"
#include "pipeline/refuse.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr unsigned bit(Kind kind) { return 1u << static_cast<unsigned>(kind); }
constexpr unsigned kAnyBackward = bit(Kind::kBackward) | bit(Kind::kInputGrad);

class Validator {
public:
    Validator(const Schedule& schedule, const Limits& limits)
        : schedule_(schedule), map_(schedule.placement) {
        check_placement();
        sizes_ = spread(limits.activation_size, map_.num_stages(), "activation size", "stage");
        if (!limits.max_live.empty()) {
            limits_ = spread(limits.max_live, map_.num_ranks(), "memory limit", "rank");
        }
        freed_ = limits.freed_by_input_grad;
        if (!(freed_ >= 0.0 && freed_ <= 1.0)) {
            refuse("expected the part that I frees to be between 0 and 1, found ", freed_);
        }
        for (const auto& steps : schedule.ranks) {
            for (const Action& step : steps) has_transfers_ |= is_transfer(step.kind);
        }
    }

    std::vector<double> run() {
        done_.assign(map_.num_slots(), 0);
        gradients_left_.resize(static_cast<std::size_t>(map_.num_stages()));
        for (int s = 0; s < map_.num_stages(); ++s) {
            gradients_left_[static_cast<std::size_t>(s)] = map_.num_microbatches(s);
        }
        started_.assign(gradients_left_.size(), 0);
        peaks_.assign(schedule_.ranks.size(), 0.0);
        for (int rank = 0; rank < map_.num_ranks(); ++rank) walk(rank);
        check_complete();
        check_runs(schedule_, map_, has_transfers_);
        return peaks_;
    }

private:
    static std::vector<double> spread(const std::vector<double>& values,
                                      int count,
                                      std::string_view what,
                                      std::string_view of) {
        const auto wanted = static_cast<std::size_t>(count);
        if (values.size() != 1 && values.size() != wanted) {
            refuse(
                "expected one ", what, " or one per ", of, " (", count, "), found ", values.size());
        }
        for (const double value : values) {
            if (!(value >= 0.0)) {
                refuse("expected a ", what, " of at least 0, found ", value);
            }
        }
        return values.size() == wanted ? values : std::vector<double>(wanted, values.front());
    }

    void check_placement() const {
        const Placement& placement = schedule_.placement;
        if (static_cast<int>(schedule_.ranks.size()) != placement.num_ranks) {
            refuse(named(),
                   "expected steps for ",
                   placement.num_ranks,
                   " ranks, found ",
                   schedule_.ranks.size());
        }
        int expected = 0;
        for (std::size_t c = 0; c < placement.chains.size(); ++c) {
            const auto [first, count] = placement.microbatches[c];
            if (placement.chains[c].empty()) refuse(named(), "chain ", c, " has no stages");
            if (first != expected) {
                refuse(named(),
                       "expected chain ",
                       c,
                       " to begin with microbatch ",
                       expected,
                       ", found ",
                       first);
            }
            expected += count;
        }
    }

    std::string named() const { return "schedule " + schedule_.name + ": "; }

    template <class... Parts>
    [[noreturn]] void fail(const Mark& mark, const Parts&... parts) const {
        const auto& steps = schedule_.ranks[static_cast<std::size_t>(mark.rank)];
        const std::string where =
            mark.step < steps.size() ? to_string(steps[mark.step]) : "the end";
        refuse(named(),
               "rank ",
               mark.rank,
               ", step ",
               mark.step,
               " (",
               where,
               "): ",
               parts...,
               "\n",
               picture(schedule_, {mark}));
    }

    void walk(int rank) {
        const auto& steps = schedule_.ranks[static_cast<std::size_t>(rank)];
        double live = 0.0;
        for (std::size_t i = 0; i < steps.size(); ++i) {
            const Mark mark{rank, i};
            check_place(mark, steps[i]);
            if (is_compute(steps[i].kind)) {
                check_compute(mark, steps[i]);
                account(mark, steps[i], live);
            } else if (is_transfer(steps[i].kind)) {
                check_transfer(mark, steps[i]);
            } else {
                check_bucket(mark, steps[i]);
                continue;
            }
            done_[map_.slot(steps[i].stage, steps[i].number)] |=
                static_cast<std::uint8_t>(bit(steps[i].kind));
        }
    }

    void check_place(const Mark& mark, const Action& step) const {
        if (!map_.has_stage(step.stage)) {
            fail(mark,
                 "there is no stage ",
                 step.stage,
                 ", stages are 0 to ",
                 map_.num_stages() - 1);
        }
        if (map_.rank(step.stage) != mark.rank) {
            fail(mark, "stage ", step.stage, " is on rank ", map_.rank(step.stage));
        }
        if (is_compute(step.kind) || is_transfer(step.kind)) {
            const int first = map_.first_microbatch(step.stage);
            const int end = first + map_.num_microbatches(step.stage);
            if (step.number < first || step.number >= end) {
                fail(mark,
                     "there is no microbatch ",
                     step.number,
                     ", stage ",
                     step.stage,
                     " takes ",
                     first,
                     " to ",
                     end - 1);
            }
            if (done(step) & bit(step.kind)) fail(mark, "this step is there twice");
        }
    }

    unsigned done(const Action& step) const { return done_[map_.slot(step.stage, step.number)]; }

    void check_compute(const Mark& mark, const Action& step) const {
        const unsigned before = done(step);
        if (step.kind == Kind::kForward) {
            check_received(mark, step, map_.previous(step.stage), Kind::kRecvForward);
            return;
        }
        if (!(before & bit(Kind::kForward))) fail(mark, "its forward does not come before it");
        if (step.kind == Kind::kWeightGrad) {
            if (before & bit(Kind::kBackward)) fail(mark, "B has done the work of W already");
            if (!(before & bit(Kind::kInputGrad))) fail(mark, "its I does not come before it");
            return;
        }
        if (before & kAnyBackward) fail(mark, "it was backwarded already");
        check_received(mark, step, map_.next(step.stage), Kind::kRecvBackward);
    }

    void check_received(const Mark& mark, const Action& step, int from, Kind recv) const {
        if (!has_transfers_ || from < 0 || map_.rank(from) == mark.rank) return;
        if (!(done(step) & bit(recv))) {
            fail(mark,
                 "its ",
                 to_string({step.stage, recv, step.number}),
                 " does not come before it");
        }
    }

    void account(const Mark& mark, const Action& step, double& live) {
        const auto rank = static_cast<std::size_t>(mark.rank);
        const double size = sizes_[static_cast<std::size_t>(step.stage)];
        switch (step.kind) {
            case Kind::kForward:
                live += size;
                started_[static_cast<std::size_t>(step.stage)] = 1;
                break;
            case Kind::kBackward:
                live -= size;
                break;
            case Kind::kInputGrad:
                live -= freed_ * size;
                break;
            default:
                live -= (1.0 - freed_) * size;
        }
        if (step.kind == Kind::kBackward || step.kind == Kind::kWeightGrad) {
            --gradients_left_[static_cast<std::size_t>(step.stage)];
        }
        peaks_[rank] = std::max(peaks_[rank], live);
        // Sums of parts may be a rounding above a limit that they meet.
        if (!limits_.empty() && live > limits_[rank] + 1e-9 * std::abs(limits_[rank])) {
            fail(mark,
                 "rank ",
                 mark.rank,
                 " would hold ",
                 live,
                 " units of activations, its limit is ",
                 limits_[rank]);
        }
    }

    void check_transfer(const Mark& mark, const Action& step) const {
        const bool forward = step.kind == Kind::kSendForward || step.kind == Kind::kRecvForward;
        const bool send = step.kind == Kind::kSendForward || step.kind == Kind::kSendBackward;
        const int peer = forward == send ? map_.next(step.stage) : map_.previous(step.stage);
        if (peer < 0) {
            fail(mark,
                 "stage ",
                 step.stage,
                 " is the ",
                 forward == send ? "last" : "first",
                 " of its chain and has no such neighbour");
        }
        if (map_.rank(peer) == mark.rank) {
            fail(mark, "stage ", peer, " is on the same rank, there is nothing to transfer");
        }
        const unsigned before = done(step);
        const unsigned work = forward ? bit(Kind::kForward) : kAnyBackward;
        if (send && !(before & work)) fail(mark, "what it sends is not computed before it");
        if (!send && (before & work)) fail(mark, "what it receives was needed before it");
    }

    void check_bucket(const Mark& mark, const Action& step) {
        if (step.number < 0) fail(mark, "buckets are counted from 0");
        if (!buckets_.insert({step.stage, {step.kind, step.number}}).second) {
            fail(mark, "this step is there twice");
        }
        const int left = gradients_left_[static_cast<std::size_t>(step.stage)];
        if (step.kind == Kind::kReduceGrad && left > 0) {
            fail(mark,
                 "the gradients of stage ",
                 step.stage,
                 " are not complete, ",
                 left,
                 " microbatches are missing");
        }
        if (step.kind == Kind::kReduceGrad) return;
        if (started_[static_cast<std::size_t>(step.stage)]) {
            fail(mark, "stage ", step.stage, " has used these parameters before");
        }
    }

    /// Every stage has done everything; every tensor that crosses ranks has both its ends.
    void check_complete() const {
        for (int stage = 0; stage < map_.num_stages(); ++stage) {
            const int rank = map_.rank(stage);
            const Mark end{rank, schedule_.ranks[static_cast<std::size_t>(rank)].size()};
            const auto missing = [&](Kind kind, int number) {
                fail(end, to_string({stage, kind, number}), " is missing");
            };
            for (int i = 0; i < map_.num_microbatches(stage); ++i) {
                const int number = map_.first_microbatch(stage) + i;
                const unsigned did = done({stage, Kind::kForward, number});
                if (!(did & bit(Kind::kForward))) missing(Kind::kForward, number);
                if (!(did & kAnyBackward)) missing(Kind::kBackward, number);
                if ((did & bit(Kind::kInputGrad)) && !(did & bit(Kind::kWeightGrad))) {
                    missing(Kind::kWeightGrad, number);
                }
                if (!has_transfers_) continue;
                const auto crosses = [&](int peer) { return peer >= 0 && map_.rank(peer) != rank; };
                const bool out = crosses(map_.next(stage));
                const bool in = crosses(map_.previous(stage));
                for (const auto& [kind, needed] : {std::pair{Kind::kSendForward, out},
                                                   std::pair{Kind::kRecvForward, in},
                                                   std::pair{Kind::kSendBackward, in},
                                                   std::pair{Kind::kRecvBackward, out}}) {
                    if (needed && !(did & bit(kind))) missing(kind, number);
                }
            }
        }
    }

    const Schedule& schedule_;
    StageMap map_;
    std::vector<double> sizes_;
    std::vector<double> limits_;
    double freed_ = 0.0;
    bool has_transfers_ = false;
    std::vector<std::uint8_t> done_;     // slot -> bits of the kinds that were seen
    std::vector<int> gradients_left_;    // stage -> microbatches whose gradients are not complete
    std::vector<std::uint8_t> started_;  // stage -> whether it has forwarded
    std::set<std::pair<int, std::pair<Kind, int>>> buckets_;
    std::vector<double> peaks_;
};

}  // namespace

std::vector<double> validate(const Schedule& schedule, const Limits& limits) {
    return Validator(schedule, limits).run();
}

}  // namespace megacore::pipeline
