/// Ranks that are threads of one process, for tests of everything that communicates.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "comm/communicator.h"

namespace megacore::comm {

/// The network between `num_ranks` threads.
///
/// Every message takes a time that is drawn from `seed`, its channel and its place in the channel,
/// so that messages of different channels overtake each other in the same way in every run. A send
/// is finished when its message arrived and its receive was posted. The k-th receive of a channel
/// must name the message of the k-th send, which is the order that NCCL needs; anything else is an
/// error on both sides.
class ThreadWorld {
public:
    struct Options {
        std::uint64_t seed = 0;
        /// Longest time that a message takes, in microseconds; 0 delivers at once.
        int max_delay_us = 0;
        /// Time after which a wait gives up, in milliseconds.
        int timeout_ms = 60'000;
    };

    ThreadWorld(int num_ranks, const Options& options);
    ~ThreadWorld();

    /// The end of `rank`; may outlive the world object.
    std::shared_ptr<Communicator> communicator(int rank) const;

    /// Messages that were sent and not received.
    int num_undelivered() const;

private:
    class State;
    class Endpoint;
    class Pending;
    std::shared_ptr<State> state_;
};

}  // namespace megacore::comm
