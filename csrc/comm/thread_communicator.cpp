#include "comm/thread_communicator.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <utility>

#include "core/check.h"

namespace megacore::comm {
namespace {

using Clock = std::chrono::steady_clock;

/// Sender and receiver.
using Channel = std::pair<int, int>;

/// One place in a channel: filled by a send, emptied by a receive, posted in either order.
struct Parcel {
    Message message;
    Value value;
    bool sent = false;
    bool claimed = false;
    Clock::time_point arrival;
};

std::uint64_t mix(std::uint64_t x) {  // splitmix64
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

std::string describe(const Message& message) {
    return detail::concatenate(message.backward ? "the gradient" : "the activation",
                               " of microbatch ",
                               message.microbatch,
                               " for stage ",
                               message.stage);
}

}  // namespace

class ThreadWorld::State {
public:
    State(int num_ranks, const Options& options) : num_ranks(num_ranks), options(options) {}

    const int num_ranks;
    const Options options;
    std::mutex mutex;
    std::condition_variable changed;
    std::string failure;
    int num_undelivered = 0;

    /// The place of the next send (or receive) of the channel. Caller holds the mutex.
    std::shared_ptr<Parcel> next(const Channel& channel, const Message& message, bool sending) {
        Lane& lane = lanes_[channel];
        std::size_t& count = sending ? lane.num_sent : lane.num_claimed;
        const std::size_t place = count++;
        if (place == lane.first + lane.parcels.size()) {
            lane.parcels.push_back(std::make_shared<Parcel>());
            lane.parcels.back()->message = message;
        }
        auto parcel = lane.parcels[place - lane.first];
        if (parcel->message.stage != message.stage ||
            parcel->message.backward != message.backward ||
            parcel->message.microbatch != message.microbatch) {
            fail(detail::concatenate("message ",
                                     place,
                                     " from rank ",
                                     channel.first,
                                     " to rank ",
                                     channel.second,
                                     " is ",
                                     describe(sending ? message : parcel->message),
                                     " for the sender, ",
                                     describe(sending ? parcel->message : message),
                                     " for the receiver"));
        }
        if (sending) {
            parcel->arrival = Clock::now() + delay(channel, place);
        }
        // Both ends hold it now, or one does and the other will find it here.
        while (lane.first < std::min(lane.num_sent, lane.num_claimed)) {
            lane.parcels.pop_front();
            ++lane.first;
        }
        num_undelivered += sending;
        return parcel;
    }

    /// Records the first failure, wakes everybody and throws. Caller holds the mutex.
    [[noreturn]] void fail(const std::string& reason) {
        if (failure.empty()) failure = reason;
        changed.notify_all();
        throw Error(reason);
    }

private:
    struct Lane {
        std::size_t first = 0;  // place of parcels.front()
        std::size_t num_sent = 0;
        std::size_t num_claimed = 0;
        std::deque<std::shared_ptr<Parcel>> parcels;
    };
    std::map<Channel, Lane> lanes_;

    std::chrono::microseconds delay(const Channel& channel, std::size_t place) const {
        if (options.max_delay_us == 0) return std::chrono::microseconds(0);
        const auto [from, to] = channel;
        const std::uint64_t x =
            mix(mix(mix(options.seed) ^ std::uint64_t(from)) ^ std::uint64_t(to));
        const auto range = static_cast<std::uint64_t>(options.max_delay_us) + 1;
        return std::chrono::microseconds(mix(x ^ place) % range);
    }
};

class ThreadWorld::Pending final : public Request {
public:
    Pending(std::shared_ptr<State> state, std::shared_ptr<Parcel> parcel, bool sending)
        : state_(std::move(state)), parcel_(std::move(parcel)), sending_(sending) {}

    bool test() override {
        const std::lock_guard lock(state_->mutex);
        return done();
    }

    Value wait() override {
        std::unique_lock lock(state_->mutex);
        const auto deadline = Clock::now() + std::chrono::milliseconds(state_->options.timeout_ms);
        while (!done()) {
            if (!state_->failure.empty()) throw Error("a peer failed: " + state_->failure);
            if (Clock::now() >= deadline) {
                state_->fail(detail::concatenate("no answer for ",
                                                 state_->options.timeout_ms,
                                                 " ms, waiting for ",
                                                 describe(parcel_->message),
                                                 sending_ ? " to be received" : ""));
            }
            // With both ends there, only time is missing.
            const bool travelling = parcel_->sent && parcel_->claimed;
            state_->changed.wait_until(lock, travelling ? parcel_->arrival : deadline);
        }
        if (sending_) return nullptr;
        --state_->num_undelivered;
        return std::move(parcel_->value);
    }

private:
    std::shared_ptr<State> state_;
    std::shared_ptr<Parcel> parcel_;
    bool sending_;

    bool done() const {
        return parcel_->sent && parcel_->claimed && Clock::now() >= parcel_->arrival;
    }
};

class ThreadWorld::Endpoint final : public Communicator {
public:
    Endpoint(std::shared_ptr<State> state, int rank) : state_(std::move(state)), rank_(rank) {}

    std::shared_ptr<Request> post_send(const Message& message, Value value) override {
        const std::lock_guard lock(state_->mutex);
        auto parcel = state_->next({rank_, message.peer}, message, true);
        parcel->value = std::move(value);
        parcel->sent = true;
        state_->changed.notify_all();
        return std::make_shared<Pending>(state_, std::move(parcel), true);
    }

    std::shared_ptr<Request> post_recv(const Message& message) override {
        const std::lock_guard lock(state_->mutex);
        auto parcel = state_->next({message.peer, rank_}, message, false);
        parcel->claimed = true;
        state_->changed.notify_all();
        return std::make_shared<Pending>(state_, std::move(parcel), false);
    }

    void abort(const std::string& reason) override {
        const std::lock_guard lock(state_->mutex);
        if (state_->failure.empty()) state_->failure = reason;
        state_->changed.notify_all();
    }

private:
    std::shared_ptr<State> state_;
    int rank_;
};

ThreadWorld::ThreadWorld(int num_ranks, const Options& options)
    : state_(std::make_shared<State>(num_ranks, options)) {
    MEGACORE_CHECK(num_ranks > 0, "ThreadWorld: expected at least one rank, found ", num_ranks);
}

ThreadWorld::~ThreadWorld() = default;

std::shared_ptr<Communicator> ThreadWorld::communicator(int rank) const {
    MEGACORE_CHECK(rank >= 0 && rank < state_->num_ranks,
                   "ThreadWorld: expected a rank from 0 to ",
                   state_->num_ranks - 1,
                   ", found ",
                   rank);
    return std::make_shared<Endpoint>(state_, rank);
}

int ThreadWorld::num_undelivered() const {
    const std::lock_guard lock(state_->mutex);
    return state_->num_undelivered;
}

}  // namespace megacore::comm
