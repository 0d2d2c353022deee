#include "pipeline/communication.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

#include "pipeline/one_slot.h"
#include "pipeline/refuse.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

constexpr int kNowhere = -1;

/// A receive and the compute step of its rank before which it is posted.
struct Post {
    int before;
    Action recv;
};

/// The tensors that one rank sends another, in order.
struct Channel {
    int to;
    std::vector<Post> posts;
};

class Pass {
public:
    Pass(const Schedule& schedule, int prefetch)
        : schedule_(schedule),
          map_(schedule.placement),
          prefetch_(prefetch),
          forward_(map_.num_slots(), kNowhere),
          backward_(map_.num_slots(), kNowhere),
          posts_(schedule.ranks.size()) {}

    Schedule run() {
        find_consumers();
        for (std::size_t rank = 0; rank < schedule_.ranks.size(); ++rank) post_receives(rank);
        Schedule out{schedule_.name, schedule_.placement, {}};
        for (std::size_t rank = 0; rank < schedule_.ranks.size(); ++rank) {
            out.ranks.push_back(merge(rank));
        }
        untangle(out.ranks);
        return out;
    }

private:
    void check(const Action& step, std::size_t rank) const {
        if (map_.has_stage(step.stage) && map_.rank(step.stage) == static_cast<int>(rank) &&
            (!is_compute(step.kind) || map_.has_slot(step.stage, step.number))) {
            return;
        }
        refuse("schedule ",
               schedule_.name,
               ": rank ",
               rank,
               " has no such stage or microbatch as that of its step ",
               to_string(step));
    }

    /// Where among its rank's compute steps each tensor is needed.
    void find_consumers() {
        for (std::size_t rank = 0; rank < schedule_.ranks.size(); ++rank) {
            int place = 0;
            for (const Action& step : schedule_.ranks[rank]) {
                check(step, rank);
                if (!is_compute(step.kind)) continue;
                const std::size_t slot = map_.slot(step.stage, step.number);
                if (step.kind == Kind::kForward) forward_[slot] = place;
                if (step.kind == Kind::kBackward || step.kind == Kind::kInputGrad) {
                    backward_[slot] = place;
                }
                ++place;
            }
        }
    }

    /// The receive of what the step computes, where another rank needs it.
    std::optional<Action> recv_of(const Action& step) const {
        const bool forward = step.kind == Kind::kForward;
        if (!forward && step.kind != Kind::kBackward && step.kind != Kind::kInputGrad) return {};
        const int consumer = forward ? map_.next(step.stage) : map_.previous(step.stage);
        if (consumer < 0 || map_.rank(consumer) == map_.rank(step.stage)) return {};
        return Action{consumer, forward ? Kind::kRecvForward : Kind::kRecvBackward, step.number};
    }

    void post_receives(std::size_t sender) {
        std::vector<Channel> channels;
        for (const Action& step : schedule_.ranks[sender]) {
            const std::optional<Action> recv = recv_of(step);
            if (!recv) continue;
            const auto& needed = recv->kind == Kind::kRecvForward ? forward_ : backward_;
            const int place = needed[map_.slot(recv->stage, recv->number)];
            if (place == kNowhere) continue;
            const int to = map_.rank(recv->stage);
            auto channel = std::find_if(
                channels.begin(), channels.end(), [to](const Channel& c) { return c.to == to; });
            if (channel == channels.end()) channel = channels.insert(channel, {to, {}});
            channel->posts.push_back({std::max(0, place - prefetch_), *recv});
        }
        for (Channel& channel : channels) {
            for (std::size_t i = channel.posts.size(); i-- > 1;) {
                Post& earlier = channel.posts[i - 1];
                earlier.before = std::min(earlier.before, channel.posts[i].before);
            }
            auto& posts = posts_[static_cast<std::size_t>(channel.to)];
            posts.insert(posts.end(), channel.posts.begin(), channel.posts.end());
        }
    }

    std::vector<Action> merge(std::size_t rank) {
        std::vector<Post>& posts = posts_[rank];
        std::stable_sort(posts.begin(), posts.end(), [](const Post& a, const Post& b) {
            return a.before < b.before;
        });
        std::vector<Action> steps;
        steps.reserve(schedule_.ranks[rank].size() + 2 * posts.size());
        std::size_t posted = 0;
        int place = 0;
        for (const Action& step : schedule_.ranks[rank]) {
            if (is_transfer(step.kind)) continue;
            if (is_compute(step.kind)) {
                for (; posted < posts.size() && posts[posted].before <= place; ++posted) {
                    steps.push_back(posts[posted].recv);
                }
                ++place;
            }
            steps.push_back(step);
            if (const std::optional<Action> recv = recv_of(step)) {
                const bool forward = recv->kind == Kind::kRecvForward;
                const Kind send = forward ? Kind::kSendForward : Kind::kSendBackward;
                steps.push_back({step.stage, send, step.number});
            }
        }
        return steps;
    }

    /// Posts receives earlier until no ranks wait for each other's: where they would, one of them
    /// wants to send while its peer has not yet posted the receive of the tensor before.
    void untangle(std::vector<std::vector<Action>>& lists) const {
        OneSlotRun run(lists, map_, true);
        while (!run.run()) {
            bool moved = false;
            for (const int rank : run.circle()) {
                const Action& step = lists[static_cast<std::size_t>(rank)][run.position(rank)];
                if (!is_send(step.kind)) continue;
                const int to = run.awaited_rank(rank);
                auto& list = lists[static_cast<std::size_t>(to)];
                const auto here = list.begin() + static_cast<std::ptrdiff_t>(run.position(to));
                const auto recv = std::find_if(here, list.end(), [&](const Action& candidate) {
                    return is_recv(candidate.kind) && map_.rank(run.peer(candidate)) == rank;
                });
                if (recv == list.end()) continue;
                std::rotate(here, recv, recv + 1);
                moved = true;
                break;
            }
            if (!moved) return;  // the compute steps themselves wait for each other
        }
    }

    const Schedule& schedule_;
    StageMap map_;
    int prefetch_;
    std::vector<int> forward_;   // slot -> place of its F among the compute steps of its rank
    std::vector<int> backward_;  // slot -> place of its B or I
    std::vector<std::vector<Post>> posts_;
};

}  // namespace

Schedule add_communication(const Schedule& schedule, int prefetch) {
    if (prefetch < 0) refuse("expected to prefetch at least 0 steps ahead, found ", prefetch);
    if (static_cast<int>(schedule.ranks.size()) != schedule.placement.num_ranks) {
        refuse("schedule ",
               schedule.name,
               ": expected steps for ",
               schedule.placement.num_ranks,
               " ranks, found ",
               schedule.ranks.size());
    }
    return Pass(schedule, prefetch).run();
}

}  // namespace megacore::pipeline
