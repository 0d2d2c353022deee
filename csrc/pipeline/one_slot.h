/// A run of a schedule in which the way from one rank to another holds one tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pipeline/schedule.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {

constexpr bool is_send(Kind kind) {
    return kind == Kind::kSendForward || kind == Kind::kSendBackward;
}
constexpr bool is_recv(Kind kind) {
    return kind == Kind::kRecvForward || kind == Kind::kRecvBackward;
}

/// Takes the steps of all ranks, each rank's in order, as far as they go.
///
/// F, B and I wait for their input: for its computation on the same rank or in a schedule without
/// transfers, for its send otherwise. A send waits until the one before it between the same two
/// ranks, in either direction of the model, was received; a receive waits for nothing. Whether
/// ranks come to their ends does not depend on the times that steps take.
class OneSlotRun {
public:
    /// The steps must fit the map, transfers have neighbours on other ranks. They may change
    /// between runs behind each rank's position.
    OneSlotRun(const std::vector<std::vector<Action>>& steps,
               const StageMap& map,
               bool has_transfers);

    /// Goes on as far as it can; whether all ranks are at their ends.
    bool run();

    /// Index of the step that the rank is to take next.
    std::size_t position(int rank) const { return position_[at(rank)]; }

    /// After run() said no: ranks each of which waits for the next, and the last for the first.
    /// Empty when the first rank that stopped waits for one that is at its end.
    std::vector<int> circle() const;

    /// The rank for which a rank that stopped waits.
    int awaited_rank(int rank) const;

    /// The stage at the other end of a transfer.
    int peer(const Action& transfer) const;

    /// How many tensors were sent on the way of `send`, which its sender has not taken yet.
    std::size_t num_sent(const Action& send) const;

private:
    struct Channel {
        int to;
        std::size_t num_sent = 0;
        std::size_t num_received = 0;
    };

    static std::size_t at(int index) { return static_cast<std::size_t>(index); }
    const Action& current(int rank) const { return steps_[at(rank)][position(rank)]; }
    bool stopped(int rank) const { return position(rank) < steps_[at(rank)].size(); }
    int source(const Action& action) const;
    Channel& channel(int from, int to);
    bool can_take(int rank, const Action& action);
    void take(int rank, const Action& action);
    void publish(const Action& action, bool forward, int consumer);
    void wake(int rank);

    const std::vector<std::vector<Action>>& steps_;
    const StageMap& map_;
    bool has_transfers_;
    std::vector<std::uint8_t> outputs_;    // slot -> whether its output can be used
    std::vector<std::uint8_t> gradients_;  // slot -> whether the gradient of its input can be used
    std::vector<std::size_t> position_;
    std::vector<std::uint8_t> queued_;
    std::vector<int> queue_;
    std::vector<std::vector<Channel>> channels_;  // rank -> to each of its neighbours
};

}  // namespace megacore::pipeline
