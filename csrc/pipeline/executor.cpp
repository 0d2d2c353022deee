#include "pipeline/executor.h"

#include <chrono>
#include <exception>

#include "core/check.h"
#include "pipeline/stage_map.h"

namespace megacore::pipeline {
namespace {

std::int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
}

/// Whether the step belongs to the forward pass.
bool is_forward(Kind kind) {
    return kind == Kind::kForward || kind == Kind::kSendForward || kind == Kind::kRecvForward ||
           kind == Kind::kGatherParam;
}

/// What a stage receives and what leaves it, for each microbatch.
enum Port { kActivationIn, kActivationOut, kGradientIn, kGradientOut, kNumPorts };

}  // namespace

std::int64_t RunTrace::engine_ns() const {
    std::int64_t busy = drain_ns;
    for (const StepTrace& step : steps) {
        const Kind kind = step.action.kind;
        busy += step.wait_ns;
        if (!is_transfer(kind)) busy += step.end_ns - step.start_ns;
    }
    return end_ns - start_ns - busy;
}

Executor::Executor(const Schedule& schedule,
                   int rank,
                   std::shared_ptr<comm::Communicator> communicator,
                   const Options& options)
    : rank_(rank), communicator_(std::move(communicator)), options_(options) {
    MEGACORE_CHECK(rank >= 0 && rank < static_cast<int>(schedule.ranks.size()),
                   "executor: rank ",
                   rank,
                   " is not in the schedule, which has ",
                   schedule.ranks.size(),
                   " ranks");
    MEGACORE_CHECK(options_.max_pending_sends > 0,
                   "executor: expected max_pending_sends of at least 1, found ",
                   options_.max_pending_sends);
    prepare(schedule);
}

void Executor::prepare(const Schedule& schedule) {
    const StageMap map(schedule.placement);
    const auto rank = static_cast<std::size_t>(rank_);
    // The slots of the stages of this rank only: a stage's are consecutive in the map.
    std::vector<std::size_t> base(static_cast<std::size_t>(map.num_stages()));
    std::size_t num_slots = 0;
    for (int stage = 0; stage < map.num_stages(); ++stage) {
        if (map.rank(stage) != rank_) continue;
        base[static_cast<std::size_t>(stage)] = num_slots;
        num_slots += static_cast<std::size_t>(map.num_microbatches(stage)) * kNumPorts;
    }
    slots_.resize(num_slots);
    const auto slot = [&](int stage, int microbatch, Port port) {
        const auto index = static_cast<std::size_t>(microbatch - map.first_microbatch(stage));
        return &slots_[base[static_cast<std::size_t>(stage)] + index * kNumPorts + port];
    };

    for (const Action& action : schedule.ranks[rank]) {
        const auto [stage, kind, number] = action;
        const bool backward = !is_forward(kind);
        const bool on_bucket = kind == Kind::kReduceGrad || kind == Kind::kGatherParam;
        MEGACORE_CHECK(map.has_stage(stage) && map.rank(stage) == rank_ &&
                           (on_bucket || map.has_slot(stage, number)),
                       "executor: step ",
                       steps_.size(),
                       " of rank ",
                       rank_,
                       ", ",
                       to_string(action),
                       ", is of a stage or microbatch that is not on this rank");
        Step step{.action = action, .place = steps_.size()};
        // The stage that consumes what leaves this one, and the one that gives it its input.
        const int target = backward ? map.previous(stage) : map.next(stage);
        const int source = backward ? map.next(stage) : map.previous(stage);
        const Port in = backward ? kGradientIn : kActivationIn;
        const Port out = backward ? kGradientOut : kActivationOut;
        if (kind == Kind::kForward || kind == Kind::kBackward || kind == Kind::kInputGrad) {
            if (source >= 0) step.input = slot(stage, number, in);
            if (target >= 0) {
                const bool local = map.rank(target) == rank_;
                step.output = local ? slot(target, number, in) : slot(stage, number, out);
            }
        } else if (is_transfer(kind)) {
            const bool sends = kind == Kind::kSendForward || kind == Kind::kSendBackward;
            const int other = sends ? target : source;
            MEGACORE_CHECK(other >= 0 && map.rank(other) != rank_,
                           "executor: step ",
                           steps_.size(),
                           " of rank ",
                           rank_,
                           ", ",
                           to_string(action),
                           ", has no neighbour on another rank");
            step.message = {map.rank(other), sends ? target : stage, number, backward};
            if (sends) {
                step.input = slot(stage, number, out);
                step.sends = &sends_[step.message.peer];
            } else {
                step.output = slot(stage, number, in);
            }
        }
        steps_.push_back(step);
    }
}

RunTrace Executor::run(const StageCallbacks& callbacks, bool forward_only) {
    RunTrace trace;
    trace.steps.reserve(steps_.size());
    trace.start_ns = now_ns();
    try {
        for (const Step& step : steps_) {
            if (forward_only && !is_forward(step.action.kind)) continue;
            current_ = step.place;
            trace.steps.push_back({step.action});
            run_step(step, callbacks, trace.steps.back());
        }
        for (auto& [peer, sends] : sends_) reap(sends, 0, trace.drain_ns);
        for (const Slot& slot : slots_) {
            MEGACORE_CHECK(!slot.filled, "a value was received or computed that no step consumed");
        }
    } catch (const std::exception& error) {
        const std::string reason = detail::concatenate(position(), ": ", error.what());
        give_up(reason);
        std::throw_with_nested(Error(reason));
    }
    trace.end_ns = now_ns();
    return trace;
}

void Executor::run_step(const Step& step, const StageCallbacks& callbacks, StepTrace& trace) {
    const auto [stage, kind, number] = step.action;
    comm::Value value;
    if (step.input != nullptr) value = take(*step.input, trace.wait_ns);
    if (step.sends != nullptr) {
        const auto most = static_cast<std::size_t>(options_.max_pending_sends) - 1;
        reap(*step.sends, most, trace.wait_ns);
    }
    trace.start_ns = now_ns();
    switch (kind) {
        case Kind::kForward:
            value = callbacks.forward(stage, number, std::move(value));
            break;
        case Kind::kBackward:
        case Kind::kInputGrad:
            value = callbacks.backward(stage, number, std::move(value), kind == Kind::kInputGrad);
            break;
        case Kind::kWeightGrad:
            callbacks.weight_grad(stage, number);
            break;
        case Kind::kReduceGrad:
            callbacks.reduce_grad(stage, number);
            break;
        case Kind::kGatherParam:
            callbacks.gather_param(stage, number);
            break;
        case Kind::kSendForward:
        case Kind::kSendBackward:
            step.sends->push_back(communicator_->post_send(step.message, std::move(value)));
            break;
        case Kind::kRecvForward:
        case Kind::kRecvBackward:
            put(*step.output, nullptr);
            step.output->request = communicator_->post_recv(step.message);
            break;
    }
    trace.end_ns = now_ns();
    if (is_compute(kind) && step.output != nullptr) put(*step.output, std::move(value));
}

comm::Value Executor::take(Slot& slot, std::int64_t& wait_ns) {
    MEGACORE_CHECK(slot.filled, "its input was neither received nor computed before");
    slot.filled = false;
    if (slot.request == nullptr) return std::move(slot.value);
    const auto request = std::move(slot.request);
    const std::int64_t start = now_ns();
    comm::Value value = request->wait();
    wait_ns += now_ns() - start;
    return value;
}

void Executor::put(Slot& slot, comm::Value value) {
    MEGACORE_CHECK(!slot.filled, "its result is there already");
    slot.filled = true;
    slot.value = std::move(value);
}

void Executor::reap(std::deque<std::shared_ptr<comm::Request>>& sends,
                    std::size_t most,
                    std::int64_t& wait_ns) {
    while (!sends.empty() && (sends.size() > most || sends.front()->test())) {
        const std::int64_t start = now_ns();
        sends.front()->wait();
        wait_ns += now_ns() - start;
        sends.pop_front();
    }
}

void Executor::give_up(const std::string& reason) {
    communicator_->abort(reason);
    for (auto& [peer, sends] : sends_) sends.clear();
    for (Slot& slot : slots_) slot = {};
}

std::string Executor::position() const {
    return detail::concatenate("rank ",
                               rank_,
                               ", step ",
                               current_,
                               " of ",
                               steps_.size(),
                               " (",
                               current_ < steps_.size() ? to_string(steps_[current_].action) : "",
                               ")");
}

}  // namespace megacore::pipeline
