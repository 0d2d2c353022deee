#include "pipeline/deadlock.h"

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "pipeline/one_slot.h"
#include "pipeline/picture.h"
#include "pipeline/refuse.h"

namespace megacore::pipeline {
namespace {

/// Everything that one rank sends another.
struct Channel {
    int from;
    int to;
    std::vector<Mark> sends;
    std::vector<Mark> recvs;
};

class Checker {
public:
    Checker(const Schedule& schedule, const StageMap& map, bool has_transfers)
        : schedule_(schedule),
          map_(map),
          has_transfers_(has_transfers),
          run_(schedule.ranks, map, has_transfers),
          channels_(schedule.ranks.size()) {}

    void check() {
        if (has_transfers_) collect();
        for (const std::vector<Channel>& channels : channels_) {
            for (const Channel& channel : channels) match(channel);
        }
        if (!run_.run()) report_deadlock();
    }

private:
    static std::size_t at(int index) { return static_cast<std::size_t>(index); }
    const Action& step(const Mark& mark) const { return schedule_.ranks[at(mark.rank)][mark.step]; }
    Mark position(int rank) const { return {rank, run_.position(rank)}; }

    std::string describe(const Mark& mark) const {
        return "rank " + std::to_string(mark.rank) + ", step " + std::to_string(mark.step) + " (" +
               to_string(step(mark)) + ")";
    }

    Channel& channel(int from, int to) {
        for (Channel& known : channels_[at(from)]) {
            if (known.to == to) return known;
        }
        return channels_[at(from)].emplace_back(Channel{from, to, {}, {}});
    }

    void collect() {
        for (int rank = 0; rank < map_.num_ranks(); ++rank) {
            for (std::size_t i = 0; i < schedule_.ranks[at(rank)].size(); ++i) {
                const Mark mark{rank, i};
                if (!is_transfer(step(mark).kind)) continue;
                const int other = map_.rank(run_.peer(step(mark)));
                if (is_send(step(mark).kind)) {
                    channel(rank, other).sends.push_back(mark);
                } else {
                    channel(other, rank).recvs.push_back(mark);
                }
            }
        }
    }

    void match(const Channel& channel) const {
        for (std::size_t i = 0; i < channel.sends.size(); ++i) {
            const Action& sent = step(channel.sends[i]);
            const bool forward = sent.kind == Kind::kSendForward;
            const Action expected{
                run_.peer(sent), forward ? Kind::kRecvForward : Kind::kRecvBackward, sent.number};
            if (step(channel.recvs[i]) == expected) continue;
            refuse("schedule ",
                   schedule_.name,
                   ": ",
                   describe(channel.recvs[i]),
                   ": the receives from rank ",
                   channel.from,
                   " are not in the order of its sends; expected ",
                   to_string(expected),
                   " here, for ",
                   describe(channel.sends[i]),
                   "\n",
                   picture(schedule_, {channel.recvs[i], channel.sends[i]}));
        }
    }

    /// The step that a stopped rank waits for.
    Mark awaited(int rank) {
        const Action& action = step(position(rank));
        const int owner = run_.awaited_rank(rank);
        if (is_send(action.kind)) return channel(rank, owner).recvs[run_.num_sent(action) - 1];
        const bool forward = action.kind == Kind::kForward;
        const int from = forward ? map_.previous(action.stage) : map_.next(action.stage);
        const auto& list = schedule_.ranks[at(owner)];
        const auto place = std::find_if(list.begin(), list.end(), [&](const Action& candidate) {
            if (candidate.stage != from || candidate.number != action.number) return false;
            if (has_transfers_ && owner != rank) {
                return candidate.kind == (forward ? Kind::kSendForward : Kind::kSendBackward);
            }
            if (forward) return candidate.kind == Kind::kForward;
            return candidate.kind == Kind::kBackward || candidate.kind == Kind::kInputGrad;
        });
        return {owner, static_cast<std::size_t>(place - list.begin())};
    }

    [[noreturn]] void report_deadlock() {
        std::vector<Mark> marks;
        std::string waits;
        for (const int rank : run_.circle()) {
            marks.push_back(position(rank));
            waits += "\n  " + describe(position(rank)) + " waits for " + describe(awaited(rank));
        }
        refuse("schedule ",
               schedule_.name,
               ": deadlock at ",
               describe(marks.front()),
               ", the ranks wait for each other:",
               waits,
               "\n",
               picture(schedule_, marks));
    }

    const Schedule& schedule_;
    const StageMap& map_;
    bool has_transfers_;
    OneSlotRun run_;
    std::vector<std::vector<Channel>> channels_;  // rank -> to each of its neighbours
};

}  // namespace

void check_runs(const Schedule& schedule, const StageMap& map, bool has_transfers) {
    Checker(schedule, map, has_transfers).check();
}

}  // namespace megacore::pipeline
