// The executor on ranks that are threads: every value must be the one a serial loop computes.
#include <gtest/gtest.h>

#include <chrono>
#include <exception>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/thread_communicator.h"
#include "core/check.h"
#include "pipeline/communication.h"
#include "pipeline/executor.h"
#include "pipeline/schedules.h"
#include "support.h"

namespace {

using megacore::Error;
using megacore::comm::Communicator;
using megacore::comm::ThreadWorld;
using megacore::comm::Value;
using megacore::testing::expect_error;
namespace mp = megacore::pipeline;

using Number = std::uint64_t;

Number mix(Number a, Number b) {
    Number x = a * 0x9e3779b97f4a7c15u + b + 1;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    return x ^ (x >> 27);
}

Value pack(Number number) { return std::make_shared<Number>(number); }
Number unpack(const Value& value) { return *std::static_pointer_cast<Number>(value); }

/// Stages that compute with integers, so that any mistake of order or address changes the result.
/// The parts of one rank are used by its thread alone.
struct Model {
    const mp::Schedule* schedule = nullptr;
    std::map<std::pair<int, int>, Number> inputs;  // between forward and backward
    std::map<std::pair<int, int>, Number> grads;   // between backward and weight_grad
    std::map<int, Number> losses;
    std::map<int, Number> weight_grads;
    int num_buckets = 0;

    bool is_last(int stage) const { return schedule->placement.is_last(stage); }

    Value forward(int stage, int microbatch, const Value& input) {
        const bool first = schedule->placement.is_first(stage);
        EXPECT_EQ(input == nullptr, first) << "stage " << stage;
        const Number x = first ? mix(1, static_cast<Number>(microbatch)) : unpack(input);
        inputs[{stage, microbatch}] = x;
        const Number y = mix(x, static_cast<Number>(stage));
        if (!is_last(stage)) return pack(y);
        losses[microbatch] = y;
        return nullptr;
    }

    Value backward(int stage, int microbatch, const Value& grad, bool input_only) {
        EXPECT_EQ(grad == nullptr, is_last(stage)) << "stage " << stage;
        const Number dy = is_last(stage) ? 7 : unpack(grad);
        grads[{stage, microbatch}] = dy;
        const Number dx = mix(dy, inputs.at({stage, microbatch}));
        if (!input_only) weight_grad(stage, microbatch);
        return schedule->placement.is_first(stage) ? nullptr : pack(dx);
    }

    void weight_grad(int stage, int microbatch) {
        const auto input = inputs.extract({stage, microbatch});
        const auto grad = grads.extract({stage, microbatch});
        ASSERT_FALSE(input.empty() || grad.empty());
        weight_grads[stage] += mix(input.mapped(), grad.mapped());  // the order does not matter
    }

    mp::StageCallbacks callbacks() {
        return {
            .forward = [this](int s, int m, Value x) { return forward(s, m, x); },
            .backward = [this](int s, int m, Value g, bool io) { return backward(s, m, g, io); },
            .weight_grad = [this](int s, int m) { weight_grad(s, m); },
            .reduce_grad = [this](int, int) { ++num_buckets; },
            .gather_param = [this](int, int) { ++num_buckets; },
        };
    }
};

/// The same computation in one loop.
Model run_serially(const mp::Schedule& schedule, bool forward_only) {
    Model model{&schedule};
    int begin = 0;
    for (std::size_t chain = 0; chain < schedule.placement.chains.size(); ++chain) {
        const int end = begin + static_cast<int>(schedule.placement.chains[chain].size());
        const auto [first, count] = schedule.placement.microbatches[chain];
        for (int m = first; m < first + count; ++m) {
            Value value;
            for (int stage = begin; stage < end; ++stage) value = model.forward(stage, m, value);
            value = nullptr;
            for (int stage = end - 1; stage >= begin && !forward_only; --stage) {
                value = model.backward(stage, m, value, false);
            }
        }
        begin = end;
    }
    return model;
}

struct Outcome {
    std::vector<Model> models;
    std::vector<mp::RunTrace> traces;
    std::vector<std::string> errors;
    int num_undelivered = 0;
};

/// Runs every rank on a thread, `num_runs` times with the same executor.
Outcome run_on_threads(const mp::Schedule& schedule,
                       const ThreadWorld::Options& options,
                       bool forward_only = false,
                       int num_runs = 1,
                       mp::Executor::Options executor_options = {}) {
    const int num_ranks = schedule.placement.num_ranks;
    const ThreadWorld world(num_ranks, options);
    Outcome outcome;
    outcome.models.resize(static_cast<std::size_t>(num_ranks));
    outcome.traces.resize(static_cast<std::size_t>(num_ranks));
    outcome.errors.resize(static_cast<std::size_t>(num_ranks));
    std::vector<std::thread> threads;
    for (int rank = 0; rank < num_ranks; ++rank) {
        threads.emplace_back([&, rank] {
            const auto i = static_cast<std::size_t>(rank);
            try {
                mp::Executor executor(schedule, rank, world.communicator(rank), executor_options);
                for (int run = 0; run < num_runs; ++run) {
                    outcome.models[i] = Model{&schedule};
                    outcome.traces[i] = executor.run(outcome.models[i].callbacks(), forward_only);
                }
            } catch (const std::exception& error) {
                outcome.errors[i] = error.what();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    outcome.num_undelivered = world.num_undelivered();
    return outcome;
}

void expect_serial_results(const mp::Schedule& schedule,
                           const Outcome& outcome,
                           bool forward_only = false) {
    const Model serial = run_serially(schedule, forward_only);
    Model all{&schedule};
    for (std::size_t rank = 0; rank < outcome.models.size(); ++rank) {
        ASSERT_EQ(outcome.errors[rank], "") << schedule.name;
        const Model& model = outcome.models[rank];
        all.losses.insert(model.losses.begin(), model.losses.end());
        all.weight_grads.insert(model.weight_grads.begin(), model.weight_grads.end());
        if (!forward_only) {
            EXPECT_TRUE(model.inputs.empty());
        }
    }
    EXPECT_EQ(all.losses, serial.losses) << schedule.name;
    EXPECT_EQ(all.weight_grads, serial.weight_grads) << schedule.name;
    EXPECT_EQ(outcome.num_undelivered, 0) << schedule.name;
}

/// A schedule from rows of steps separated by spaces.
mp::Schedule parse(mp::Placement placement, const std::vector<std::string>& rows) {
    mp::Schedule schedule{"by hand", std::move(placement), {}};
    for (const std::string& row : rows) {
        std::istringstream words(row);
        schedule.ranks.emplace_back();
        for (std::string word; words >> word;) {
            schedule.ranks.back().push_back(mp::parse_action(word));
        }
    }
    return schedule;
}

/// Two ranks, two microbatches, both halves of the backward pass apart on rank 0.
mp::Schedule small_schedule() {
    return parse(
        mp::plain_placement(2, 2),
        {"0GATHER_PARAM0 0F0 0SEND_F0 0RECV_B0 0F1 0SEND_F1 0RECV_B1 0I0 0I1 0W0 0W1 0REDUCE_GRAD0",
         "1RECV_F0 1RECV_F1 1F0 1B0 1SEND_B0 1F1 1B1 1SEND_B1 1REDUCE_GRAD0 1REDUCE_GRAD1"});
}

TEST(Executor, RunsEveryKindOfStep) {
    const mp::Schedule schedule = small_schedule();
    const Outcome outcome = run_on_threads(schedule, {});
    expect_serial_results(schedule, outcome);
    EXPECT_EQ(outcome.models[0].num_buckets, 2);
    EXPECT_EQ(outcome.models[1].num_buckets, 2);
}

TEST(Executor, RunsAgainAndAgain) {
    const mp::Schedule schedule = small_schedule();
    expect_serial_results(schedule,
                          run_on_threads(schedule, {.seed = 3, .max_delay_us = 200}, false, 20));
}

TEST(Executor, HandsOverDirectlyOnOneRank) {
    const mp::Schedule schedule = parse(mp::v_placement(2, 1),
                                        {"0F0 0SEND_F0 3RECV_F0 3F0 3I0 3SEND_B0 0RECV_B0 0B0 3W0",
                                         "1RECV_F0 1F0 2F0 2SEND_F0 2RECV_B0 2B0 1B0 1SEND_B0"});
    expect_serial_results(schedule, run_on_threads(schedule, {.seed = 1, .max_delay_us = 100}));
}

TEST(Executor, ForwardOnlySkipsTheBackwardPass) {
    const mp::Schedule schedule = small_schedule();
    const Outcome outcome = run_on_threads(schedule, {.max_delay_us = 100}, true);
    expect_serial_results(schedule, outcome, true);
    EXPECT_EQ(outcome.models[1].losses.size(), 2u);
    EXPECT_TRUE(outcome.models[1].weight_grads.empty());
    EXPECT_EQ(outcome.traces[0].steps.size(), 5u);  // gather, two forwards, two sends
}

TEST(Executor, TraceTellsWaitingFromWork) {
    const mp::Schedule schedule = small_schedule();
    const ThreadWorld world(2, {});
    mp::RunTrace trace;
    std::thread peer([&] {
        Model model{&schedule};
        mp::StageCallbacks callbacks = model.callbacks();
        callbacks.forward = [&](int s, int m, Value x) {
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            return model.forward(s, m, x);
        };
        mp::Executor(schedule, 0, world.communicator(0)).run(callbacks);
    });
    Model model{&schedule};
    trace = mp::Executor(schedule, 1, world.communicator(1)).run(model.callbacks());
    peer.join();
    ASSERT_EQ(trace.steps.size(), schedule.ranks[1].size());
    std::int64_t time = trace.start_ns;
    std::int64_t waited = 0;
    for (std::size_t i = 0; i < trace.steps.size(); ++i) {
        const mp::StepTrace& step = trace.steps[i];
        EXPECT_EQ(step.action, schedule.ranks[1][i]);
        EXPECT_GE(step.start_ns - step.wait_ns, time);
        EXPECT_GE(step.end_ns, step.start_ns);
        if (step.action.kind == mp::Kind::kForward) waited += step.wait_ns;
        time = step.end_ns;
    }
    EXPECT_GE(waited, 20'000'000);  // the peer sleeps at least that long before it sends
    EXPECT_LE(time, trace.end_ns);
    EXPECT_LE(waited + trace.engine_ns(), trace.end_ns - trace.start_ns);
    EXPECT_GE(trace.engine_ns(), 0);
}

TEST(Executor, FailureOfOneRankEndsAllAndNamesTheStep) {
    const mp::Schedule schedule = small_schedule();
    const ThreadWorld world(2, {});
    std::string other;
    std::thread peer([&] {
        Model model{&schedule};
        try {
            mp::Executor(schedule, 0, world.communicator(0)).run(model.callbacks());
        } catch (const Error& error) {
            other = error.what();
        }
    });
    Model model{&schedule};
    mp::StageCallbacks callbacks = model.callbacks();
    const auto token = std::make_shared<Number>(0);
    callbacks.backward = [&](int, int, Value, bool) -> Value {
        throw std::out_of_range("no such weight");
    };
    mp::Executor executor(schedule, 1, world.communicator(1));
    try {
        executor.run(callbacks);
        ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "rank 1, step 3 of 10 (1B0): no such weight");
        EXPECT_THROW(std::rethrow_if_nested(error), std::out_of_range);
    }
    peer.join();
    EXPECT_NE(other.find("rank 0, step"), std::string::npos) << other;
    EXPECT_NE(other.find("no such weight"), std::string::npos) << other;
    EXPECT_EQ(executor.position(), "rank 1, step 3 of 10 (1B0)");
}

TEST(Executor, ReleasesAllValuesAfterAFailure) {
    const mp::Schedule schedule = small_schedule();
    const ThreadWorld world(2, {});
    std::weak_ptr<void> sent;
    mp::Executor executor(schedule, 0, world.communicator(0));
    {
        Model model{&schedule};
        mp::StageCallbacks callbacks = model.callbacks();
        callbacks.forward = [&](int, int microbatch, Value) -> Value {
            MEGACORE_CHECK(microbatch == 0, "refused");
            Value value = pack(5);
            sent = value;
            return value;
        };
        EXPECT_THROW(executor.run(callbacks), Error);
    }
    // Only the world, where nobody will fetch it any more, may still hold it.
    EXPECT_LE(sent.use_count(), 1);
}

TEST(Executor, WaitsForOldSendsAtMost) {
    // Rank 1 receives the second value only at the end, so with one send under way rank 0 has to
    // wait before its second send, and with two it need not.
    const mp::Schedule schedule = parse(mp::plain_placement(2, 2),
                                        {"0F0 0SEND_F0 0F1 0SEND_F1", "1RECV_F0 1F0 1RECV_F1 1F1"});
    for (const int most : {1, 2}) {
        const ThreadWorld world(2, {});
        std::thread peer([&] {
            Model model{&schedule};
            std::this_thread::sleep_for(std::chrono::milliseconds(20));
            mp::Executor(schedule, 1, world.communicator(1)).run(model.callbacks(), true);
        });
        Model model{&schedule};
        mp::Executor executor(schedule, 0, world.communicator(0), {.max_pending_sends = most});
        const mp::RunTrace trace = executor.run(model.callbacks(), true);
        peer.join();
        EXPECT_EQ(trace.steps[3].wait_ns > 10'000'000, most == 1);
        EXPECT_EQ(trace.drain_ns > 10'000'000, most == 2);
    }
}

TEST(Executor, RefusesWhatItCannotRun) {
    const mp::Placement two = mp::plain_placement(2, 1);
    const ThreadWorld world(2, {.timeout_ms = 200});
    const auto build = [&](const std::string& row) {
        return mp::Executor(parse(two, {row, ""}), 0, world.communicator(0));
    };
    expect_error([&] { build("0F0 1F0"); }, "step 1 of rank 0, 1F0, is of a stage or microbatch");
    expect_error([&] { build("0F1"); }, "step 0 of rank 0, 0F1, is of a stage or microbatch");
    expect_error([&] { build("0RECV_F0"); }, "0RECV_F0, has no neighbour on another rank");
    expect_error([&] { mp::Executor(parse(two, {"", ""}), 2, nullptr); }, "rank 2 is not in");
    expect_error([&] { mp::Executor(parse(two, {"", ""}), 0, nullptr, {.max_pending_sends = 0}); },
                 "max_pending_sends");

    const auto run = [&](const std::string& row) {
        const mp::Schedule schedule = parse(two, {row, ""});
        const ThreadWorld own(2, {.timeout_ms = 50});
        Model model{&schedule};
        mp::Executor(schedule, 0, own.communicator(0)).run(model.callbacks());
    };
    expect_error([&] { run("0F0 0SEND_F0 0B0"); },
                 "step 2 of 3 (0B0): its input was neither received nor computed");
    expect_error([&] { run("0SEND_F0"); }, "(0SEND_F0): its input was neither");
    expect_error([&] { run("0F0 0F0"); }, "step 1 of 2 (0F0): its result is there already");
    expect_error([&] { run("0RECV_B0 0RECV_B0"); }, "(0RECV_B0): its result is there already");
    expect_error([&] { run("0F0"); }, "no step consumed");
    expect_error([&] { run("0RECV_B0 0B0"); }, "(0B0): no answer for 50 ms");
}

struct Sweep {
    std::string name;
    int num_ranks;
};

class EverySchedule : public ::testing::TestWithParam<Sweep> {};

TEST_P(EverySchedule, GivesTheSerialResults) {
    const auto& [name, num_ranks] = GetParam();
    int num_runs = 0;
    for (const int num_microbatches : {1, 2, 2 * num_ranks, 3 * num_ranks - 1, 5 * num_ranks + 2}) {
        mp::Schedule schedule;
        try {
            schedule = mp::add_communication(mp::make_schedule(
                name, {.num_ranks = num_ranks, .num_microbatches = num_microbatches}));
        } catch (const Error&) {
            continue;  // too few for this schedule
        }
        ++num_runs;
        const auto seed = static_cast<std::uint64_t>(17 * num_ranks + num_microbatches);
        const ThreadWorld::Options options{.seed = seed, .max_delay_us = 60};
        expect_serial_results(schedule, run_on_threads(schedule, options, false, 2));
        expect_serial_results(schedule,
                              run_on_threads(schedule, {}, false, 1, {.max_pending_sends = 1}));
        expect_serial_results(schedule, run_on_threads(schedule, options, true), true);
    }
    EXPECT_GE(num_runs, 2);
}

std::vector<Sweep> sweeps() {
    std::vector<Sweep> sweeps;
    for (const std::string& name : mp::schedule_names()) {
        for (int num_ranks = 2; num_ranks <= 8; ++num_ranks) {
            if (name == "dualpipe" && num_ranks % 2 != 0) continue;  // its ranks form pairs
            sweeps.push_back({name, num_ranks});
        }
    }
    return sweeps;
}

INSTANTIATE_TEST_SUITE_P(Executor,
                         EverySchedule,
                         ::testing::ValuesIn(sweeps()),
                         [](const auto& info) {
                             std::string name = info.param.name;
                             std::erase(name, '-');
                             return name + "_on_" + std::to_string(info.param.num_ranks);
                         });

TEST(ThreadWorld, NamesMessagesThatDoNotMatch) {
    const ThreadWorld world(2, {});
    const auto zero = world.communicator(0);
    const auto one = world.communicator(1);
    const auto receive = one->post_recv({.peer = 0, .stage = 1, .microbatch = 0});
    expect_error(
        [&] { zero->post_send({.peer = 1, .stage = 1, .microbatch = 2}, pack(1)); },
        "message 0 from rank 0 to rank 1 is the activation of microbatch 2 for stage 1 for the "
        "sender, the activation of microbatch 0 for stage 1 for the receiver");
    expect_error([&] { receive->wait(); }, "a peer failed: message 0 from rank 0");
    expect_error([&] { world.communicator(2); }, "expected a rank from 0 to 1, found 2");
}

TEST(ThreadWorld, ChannelsOvertakeEachOther) {
    int overtaken = 0;
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
        const ThreadWorld world(3, {.seed = seed, .max_delay_us = 20'000});
        const auto first = world.communicator(0)->post_send({.peer = 2, .stage = 2}, pack(1));
        world.communicator(1)->post_send({.peer = 2, .stage = 2}, pack(2));
        EXPECT_FALSE(first->test());
        const auto two = world.communicator(2);
        const auto early = two->post_recv({.peer = 0, .stage = 2});
        const auto late = two->post_recv({.peer = 1, .stage = 2});
        while (!late->test() && !early->test()) std::this_thread::yield();
        overtaken += !early->test();
        EXPECT_EQ(unpack(early->wait()), 1u);
        EXPECT_EQ(unpack(late->wait()), 2u);
        EXPECT_TRUE(first->test());
        EXPECT_EQ(world.num_undelivered(), 0);
    }
    EXPECT_GT(overtaken, 2);
    EXPECT_LT(overtaken, 18);
}

}  // namespace
