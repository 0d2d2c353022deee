#include "pipeline/one_slot.h"

#include <algorithm>

namespace megacore::pipeline {

OneSlotRun::OneSlotRun(const std::vector<std::vector<Action>>& steps,
                       const StageMap& map,
                       bool has_transfers)
    : steps_(steps),
      map_(map),
      has_transfers_(has_transfers),
      outputs_(map.num_slots(), 0),
      gradients_(map.num_slots(), 0),
      position_(steps.size(), 0),
      queued_(steps.size(), 0),
      channels_(steps.size()) {}

bool OneSlotRun::run() {
    for (int rank = map_.num_ranks() - 1; rank >= 0; --rank) wake(rank);
    while (!queue_.empty()) {
        const int rank = queue_.back();
        queue_.pop_back();
        queued_[at(rank)] = 0;
        while (stopped(rank) && can_take(rank, current(rank))) {
            take(rank, current(rank));
            ++position_[at(rank)];
        }
    }
    for (int rank = 0; rank < map_.num_ranks(); ++rank) {
        if (stopped(rank)) return false;
    }
    return true;
}

void OneSlotRun::wake(int rank) {
    if (queued_[at(rank)]) return;
    queued_[at(rank)] = 1;
    queue_.push_back(rank);
}

int OneSlotRun::peer(const Action& transfer) const {
    const bool next = transfer.kind == Kind::kSendForward || transfer.kind == Kind::kRecvBackward;
    return next ? map_.next(transfer.stage) : map_.previous(transfer.stage);
}

OneSlotRun::Channel& OneSlotRun::channel(int from, int to) {
    for (Channel& known : channels_[at(from)]) {
        if (known.to == to) return known;
    }
    return channels_[at(from)].emplace_back(Channel{to});
}

std::size_t OneSlotRun::num_sent(const Action& send) const {
    for (const Channel& known : channels_[at(map_.rank(send.stage))]) {
        if (known.to == map_.rank(peer(send))) return known.num_sent;
    }
    return 0;
}

/// The stage whose output or gradient a compute step needs, or -1.
int OneSlotRun::source(const Action& action) const {
    if (action.kind == Kind::kForward) return map_.previous(action.stage);
    if (action.kind == Kind::kBackward || action.kind == Kind::kInputGrad) {
        return map_.next(action.stage);
    }
    return -1;
}

bool OneSlotRun::can_take(int rank, const Action& action) {
    if (is_send(action.kind)) {
        const Channel& way = channel(rank, map_.rank(peer(action)));
        return way.num_received >= way.num_sent;
    }
    const int from = source(action);
    if (from < 0) return true;
    const auto& usable = action.kind == Kind::kForward ? outputs_ : gradients_;
    return usable[map_.slot(from, action.number)];
}

void OneSlotRun::take(int rank, const Action& action) {
    if (is_recv(action.kind)) {
        const int from = map_.rank(peer(action));
        ++channel(from, rank).num_received;
        wake(from);
    } else if (is_send(action.kind)) {
        ++channel(rank, map_.rank(peer(action))).num_sent;
        publish(action, action.kind == Kind::kSendForward, peer(action));
    } else if (is_compute(action.kind) && action.kind != Kind::kWeightGrad) {
        const bool forward = action.kind == Kind::kForward;
        const int consumer = forward ? map_.next(action.stage) : map_.previous(action.stage);
        if (consumer < 0) return;
        if (!has_transfers_ || map_.rank(consumer) == rank) publish(action, forward, consumer);
    }
}

void OneSlotRun::publish(const Action& action, bool forward, int consumer) {
    auto& usable = forward ? outputs_ : gradients_;
    usable[map_.slot(action.stage, action.number)] = 1;
    wake(map_.rank(consumer));
}

int OneSlotRun::awaited_rank(int rank) const {
    const Action& action = current(rank);
    return map_.rank(is_send(action.kind) ? peer(action) : source(action));
}

std::vector<int> OneSlotRun::circle() const {
    int rank = 0;
    while (!stopped(rank)) ++rank;
    std::vector<std::uint8_t> seen(steps_.size(), 0);
    while (!seen[at(rank)]) {
        seen[at(rank)] = 1;
        rank = awaited_rank(rank);
        if (!stopped(rank)) return {};
    }
    std::vector<int> ranks{rank};
    for (int next = awaited_rank(rank); next != rank; next = awaited_rank(next)) {
        ranks.push_back(next);
    }
    return ranks;
}

}  // namespace megacore::pipeline
