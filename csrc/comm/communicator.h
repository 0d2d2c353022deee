/// What the pipeline asks of a transport: values that are sent and received without blocking.
#pragma once

#include <memory>
#include <string>

namespace megacore::comm {

/// A tensor, or whatever the callbacks of a run exchange; nobody here looks inside.
using Value = std::shared_ptr<void>;

/// One activation (or gradient, when `backward`) on its way between two stages.
struct Message {
    /// The rank at the other end.
    int peer = 0;
    /// The stage that consumes it.
    int stage = 0;
    int microbatch = 0;
    bool backward = false;
};

/// A send or receive under way. Destroying it gives it up; memory stays valid as long as the
/// transport uses it.
class Request {
public:
    virtual ~Request() = default;

    /// Whether wait() would return at once. A transport that cannot tell says false.
    virtual bool test() = 0;

    /// Blocks until it is done. Returns the received value; nullptr of a send. Called once.
    /// Throws when the transport or the peer failed.
    virtual Value wait() = 0;
};

/// Sends and receives between the ranks of a pipeline.
///
/// A channel is one (sender, receiver). Within a channel the receives are posted in the order of
/// the sends; between channels there is no order. Posting never blocks, and a send may be finished
/// only once its receive was posted. Used by one thread at a time.
class Communicator {
public:
    virtual ~Communicator() = default;

    /// Starts to send `value` to message.peer.
    virtual std::shared_ptr<Request> post_send(const Message& message, Value value) = 0;

    /// Starts to receive from message.peer.
    virtual std::shared_ptr<Request> post_recv(const Message& message) = 0;

    /// Tells the transport that this rank gives up because of `reason`, so that peers who wait for
    /// it fail too where the transport can tell them.
    virtual void abort(const std::string& reason) = 0;
};

}  // namespace megacore::comm
