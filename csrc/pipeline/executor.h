/// Runs one rank's list of a schedule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "pipeline/schedule.h"

namespace megacore::pipeline {

/// What a stage does. The executor hands the values through and never looks inside.
struct StageCallbacks {
    /// Output of (stage, microbatch). The input is nullptr for the first stage of a chain; the
    /// output of its last stage (the loss) is dropped.
    std::function<comm::Value(int, int, comm::Value)> forward;
    /// Gradient of the stage's input, given that of its output (nullptr for the last stage of a
    /// chain). With `input_only` the gradients of the weights are left to weight_grad.
    std::function<comm::Value(int, int, comm::Value, bool input_only)> backward;
    /// The part of (stage, microbatch) that backward with `input_only` left.
    std::function<void(int, int)> weight_grad;
    /// Starts to sum the gradients of (stage, bucket) over the replicas of the stage.
    std::function<void(int, int)> reduce_grad;
    /// Starts to gather the parameters of (stage, bucket) from the replicas of the stage.
    std::function<void(int, int)> gather_param;
};

/// When a step ran, in nanoseconds of the steady clock.
struct StepTrace {
    Action action;
    /// After it had waited for its input.
    std::int64_t start_ns = 0;
    std::int64_t end_ns = 0;
    /// Time before start_ns that it waited for its input (of a send: for an older one).
    std::int64_t wait_ns = 0;
};

/// What run() did.
struct RunTrace {
    std::vector<StepTrace> steps;
    std::int64_t start_ns = 0;
    std::int64_t end_ns = 0;
    /// Time at the end of the run that was spent waiting for the last sends.
    std::int64_t drain_ns = 0;

    /// Time of the run that was neither a callback nor waiting: what the engine itself took.
    std::int64_t engine_ns() const;
};

/// One rank's part of a pipeline.
///
/// A receive is posted where the schedule says and waited for when its consumer starts. A send is
/// posted and not waited for, until `max_pending_sends` later ones to the same rank were posted:
/// the values of the sends under way are the only memory that it holds longer than the schedule
/// says, and a transport that knows when a send is finished gets them released before. Between
/// stages of the same rank values are handed over directly.
class Executor {
public:
    struct Options {
        int max_pending_sends = 8;
    };

    /// `schedule` must have passed add_communication, or have no neighbours on different ranks.
    Executor(const Schedule& schedule,
             int rank,
             std::shared_ptr<comm::Communicator> communicator,
             const Options& options);
    Executor(const Schedule& schedule, int rank, std::shared_ptr<comm::Communicator> communicator)
        : Executor(schedule, rank, std::move(communicator), Options{}) {}

    /// Runs the list once. With `forward_only`, for evaluation, all that belongs to the backward
    /// pass is skipped. An exception of a callback or of the transport gives up all that is under
    /// way, tells the peers, and is thrown as std::nested_exception inside an Error that names the
    /// action, rank and step; the executor can be used again if the transport can.
    RunTrace run(const StageCallbacks& callbacks, bool forward_only = false);

    /// The step that runs or ran last, as "rank 1, step 17 of 40 (2F3)".
    std::string position() const;

    Executor(const Executor&) = delete;
    Executor& operator=(const Executor&) = delete;

private:
    /// A value that waits for its consumer, or its receive.
    struct Slot {
        comm::Value value;
        std::shared_ptr<comm::Request> request;
        bool filled = false;
    };
    /// An action with all that can be looked up before the run.
    struct Step {
        Action action;
        std::size_t place = 0;  // within the run, for position()
        Slot* input = nullptr;
        Slot* output = nullptr;
        comm::Message message;
        std::deque<std::shared_ptr<comm::Request>>* sends = nullptr;
    };

    int rank_;
    std::shared_ptr<comm::Communicator> communicator_;
    Options options_;
    std::vector<Step> steps_;
    std::vector<Slot> slots_;
    /// Sends under way to each peer.
    std::map<int, std::deque<std::shared_ptr<comm::Request>>> sends_;
    std::size_t current_ = 0;

    void prepare(const Schedule& schedule);
    void run_step(const Step& step, const StageCallbacks& callbacks, StepTrace& trace);
    comm::Value take(Slot& slot, std::int64_t& wait_ns);
    void put(Slot& slot, comm::Value value);
    void reap(std::deque<std::shared_ptr<comm::Request>>& sends,
              std::size_t most,
              std::int64_t& wait_ns);
    void give_up(const std::string& reason);
};

}  // namespace megacore::pipeline
