#include "planner/step_model.h"

#include <algorithm>

#include "pipeline/schedules.h"

namespace megacore::planner {
namespace {

constexpr double kMicro = 1e6;

std::size_t index(int i) { return static_cast<std::size_t>(i); }

ReplicaTimes replica_times(const Model& model,
                           const Layout& layout,
                           const Hardware& hardware,
                           const RankState& state,
                           int num_microbatches) {
    ReplicaTimes times;
    const GroupPlace place = place_of(layout, "dp-cp");
    const double grad_bytes = state.elements * gradient_element_bytes(model);
    const double param_bytes = state.elements * model.dtype_bytes;
    // Each bucket is a collective of its own: its steps add to the time.
    const double buckets = std::max(1.0, state.buckets);
    if (layout.shards()) {
        times.reduce = buckets * shard_time(hardware, place, grad_bytes / buckets);
        times.gather = buckets * shard_time(hardware, place, param_bytes / buckets);
        if (layout.sharding >= Sharding::kGradients) times.reduce *= num_microbatches;
        if (layout.sharding == Sharding::kParameters) times.gather *= 2.0 * num_microbatches;
    } else {
        times.reduce = buckets * all_reduce_time(hardware, place, grad_bytes / buckets);
    }
    if (state.tied_elements > 0.0) {
        const GroupPlace pipeline = place_of(layout, "pp");
        const GroupPlace ends{2, pipeline.stride * (layout.pipeline - 1)};
        times.tied =
            all_reduce_time(hardware,
                            ends,
                            state.tied_elements / (layout.shards() ? layout.replicas() : 1) *
                                gradient_element_bytes(model));
    }
    // Adam reads the gradient, reads and writes parameter and two moments, writes the model's
    // parameter; the norm reads the gradients, and they are set to zero.
    const double update = state.own_elements * (4.0 + 24.0 + model.dtype_bytes + 4.0);
    const double clear = state.elements * gradient_element_bytes(model);
    times.optimizer = (update + clear) / hardware.memory_rate;
    return times;
}

/// What is left of `work` that comes in `pieces` beside compute that takes `beside`: at least one
/// piece.
double uncovered(double work, double pieces, double beside) {
    const double piece = work / std::max(1.0, pieces);
    return std::max(piece, work - std::max(0.0, beside));
}

bool per_microbatch(const Layout& layout) { return layout.sharding >= Sharding::kGradients; }

/// What gathers and reductions of one stage take that its own compute cannot cover. The simulator
/// runs them beside the compute of other stages; inside of a stage they go bucket by bucket.
struct Uncovered {
    double gather;
    double reduce;
};

Uncovered uncovered_of(const Layout& layout, const StepModel& step, std::size_t rank, int s) {
    const double each = per_microbatch(layout) ? step.num_microbatches : 1.0;
    const double share = 1.0 / static_cast<double>(step.held[rank].size());
    const double pieces = std::max(1.0, step.states[rank].buckets * share);
    const double reduce = step.replicas[rank].reduce * share;
    const double gather = step.replicas[rank].gather * share;
    const StageCost& stage = step.stages[index(s)];
    const double forward = stage.forward.total();
    const double backward = stage.input_grad.total() + stage.weight_grad.total();
    Uncovered left{0.0, reduce};
    if (layout.overlap_grad_reduce) left.reduce = uncovered(reduce, pieces * each, backward * each);
    if (layout.overlap_param_gather) {
        const bool twice = layout.sharding == Sharding::kParameters;
        const double beside = twice ? step.num_microbatches * (forward + backward) : forward;
        left.gather =
            uncovered(gather, pieces * (twice ? 2.0 * step.num_microbatches : 1.0), beside);
    }
    return left;
}

void price_replicas(const Layout& layout, const StepModel& step, pipeline::Costs& costs) {
    costs.reduce_grad_us.assign(step.stages.size(), 0.0);
    costs.gather_param_us.assign(step.stages.size(), 0.0);
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        for (const int s : step.held[r]) {
            const Uncovered left = uncovered_of(layout, step, r, s);
            costs.reduce_grad_us[index(s)] = kMicro * left.reduce;
            costs.gather_param_us[index(s)] = kMicro * left.gather;
        }
    }
}

bool ends_stage(const pipeline::Action& action) {
    return action.kind == pipeline::Kind::kBackward || action.kind == pipeline::Kind::kWeightGrad;
}

/// Adds the steps: gathers before everything, reductions as soon as a stage has all its gradients,
/// or after everything without overlap.
void add_replica_steps(const Layout& layout, const StepModel& step, PricedSchedule& priced) {
    price_replicas(layout, step, priced.costs);
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        auto& actions = priced.schedule.ranks[r];
        std::vector<pipeline::Action> all;
        std::vector<pipeline::Action> late;
        std::vector<int> left(step.stages.size(), 0);
        if (layout.overlap_param_gather) {
            for (const int s : step.held[r]) all.push_back({s, pipeline::Kind::kGatherParam, 0});
        }
        for (const auto& action : actions) left[index(action.stage)] += ends_stage(action) ? 1 : 0;
        for (const auto& action : actions) {
            all.push_back(action);
            if (!ends_stage(action) || --left[index(action.stage)] > 0) continue;
            (layout.overlap_grad_reduce ? all : late)
                .push_back({action.stage, pipeline::Kind::kReduceGrad, 0});
        }
        all.insert(all.end(), late.begin(), late.end());
        actions = std::move(all);
    }
}

}  // namespace

std::vector<std::vector<int>> held_stages(const Layout& layout) {
    std::vector<std::vector<int>> held(index(layout.pipeline));
    const int p = layout.pipeline;
    for (int stage = 0; stage < layout.stages(); ++stage) {
        const bool back = is_v_shaped(layout.schedule) && stage >= p;
        held[index(back ? 2 * p - 1 - stage : stage % p)].push_back(stage);
    }
    return held;
}

StepModel step_model(const Model& model,
                     const Layout& layout,
                     const Hardware& hardware,
                     const BlockCosts& blocks,
                     int global_batch,
                     bool exact) {
    StepModel step;
    step.num_microbatches = layout.num_microbatches(global_batch);
    const auto contents = stage_contents(layout, model);
    for (std::size_t i = 0; i < contents.size(); ++i) {
        const bool same = i > 0 && contents[i] == contents[i - 1];
        step.stages.push_back(same ? step.stages.back()
                                   : stage_cost(model, layout, blocks, contents[i]));
    }
    step.held = held_stages(layout);
    const bool tied_apart =
        layout.pipeline > 1 && step.held.front().back() != static_cast<int>(contents.size()) - 1;
    std::vector<StageContent> before;
    for (const auto& stages : step.held) {
        std::vector<StageContent> held;
        for (const int stage : stages) held.push_back(contents[index(stage)]);
        if (held == before) {
            step.states.push_back(step.states.back());
            step.replicas.push_back(step.replicas.back());
            continue;
        }
        step.states.push_back(rank_state(model, layout, held, tied_apart, exact));
        step.replicas.push_back(
            replica_times(model, layout, hardware, step.states.back(), step.num_microbatches));
        before = std::move(held);
    }
    if (layout.pipeline > 1) {
        const GroupPlace place = place_of(layout, "pp");
        const double whole = send_time(hardware, place, blocks.boundary_bytes);
        const double half = send_time(hardware, place, blocks.boundary_bytes / 2.0);
        step.transfer_s = 2.0 * (whole - half);
        step.transfer_latency_s = whole - step.transfer_s;
        if (layout.scatter_transfers && !layout.sequence_parallel && layout.tensor > 1) {
            step.transfer_latency_s +=
                shard_time(hardware, place_of(layout, "tp"), blocks.boundary_bytes * layout.tensor);
        }
    }
    return step;
}

PricedSchedule priced_schedule(const Layout& layout,
                               const StepModel& step,
                               bool with_replicas,
                               bool with_transfers) {
    pipeline::Costs costs;
    const std::size_t count = step.stages.size();
    costs.forward_us.resize(count);
    costs.input_grad_us.resize(count);
    costs.weight_grad_us.resize(count);
    costs.activation_bytes.resize(count);
    costs.kept_bytes.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
        const StageCost& stage = step.stages[i];
        costs.forward_us[i] = kMicro * stage.forward.total();
        costs.input_grad_us[i] = kMicro * stage.input_grad.total();
        costs.weight_grad_us[i] = kMicro * stage.weight_grad.total();
        costs.activation_bytes[i] = stage.kept_bytes;
        costs.kept_bytes[i] = std::min(stage.deferred_bytes, stage.kept_bytes);
    }
    const double transfer = kMicro * (step.transfer_s + step.transfer_latency_s);
    if (with_transfers && layout.overlap_p2p) {
        costs.transfer_us = kMicro * step.transfer_s;
        costs.latency_us = kMicro * step.transfer_latency_s;
    } else if (with_transfers) {
        // Sender and receiver both wait for each transfer.
        for (std::size_t i = 0; i < count; ++i) {
            const double ends = (i > 0 ? 1.0 : 0.0) + (i + 1 < count ? 1.0 : 0.0);
            costs.forward_us[i] += ends * transfer;
            costs.input_grad_us[i] += ends * transfer;
        }
    }
    pipeline::Schedule schedule;
    if (layout.pipeline == 1) {
        schedule.name = "none";
        schedule.placement = pipeline::plain_placement(1, step.num_microbatches);
        schedule.ranks.resize(1);
        for (int m = 0; m < step.num_microbatches; ++m) {
            schedule.ranks[0].push_back({0, pipeline::Kind::kForward, m});
            schedule.ranks[0].push_back({0, pipeline::Kind::kBackward, m});
        }
    } else {
        pipeline::ScheduleOptions options;
        options.num_ranks = layout.pipeline;
        options.num_microbatches = step.num_microbatches;
        options.num_chunks = layout.schedule == "interleaved" ? layout.virtual_stages : 0;
        schedule = pipeline::make_schedule(layout.schedule, options);
    }
    PricedSchedule priced{std::move(schedule), std::move(costs)};
    if (with_replicas) add_replica_steps(layout, step, priced);
    return priced;
}

double least_pipeline_time(const Layout& layout, const StepModel& step) {
    const bool splits = splits_backward(layout.schedule);
    double least = 0.0;
    double around = 0.0;  // of the stages before
    int next = 0;
    for (const auto& held : step.held) {
        double busy = 0.0;
        for (const int s : held) busy += step.stages[index(s)].busy();
        for (; next < held.front(); ++next) {
            const StageCost& stage = step.stages[index(next)];
            around += stage.forward.total();
            // Weight gradients may be left for the time in which the last gradient goes home.
            if (!splits) around += stage.input_grad.total() + stage.weight_grad.total();
        }
        least = std::max(least, busy * step.num_microbatches + around);
    }
    return least;
}

double least_replica_time(const Layout& layout, const StepModel& step) {
    const std::size_t last = step.held.size() - 1;
    double least = 0.0;
    for (const std::size_t r : {std::size_t{0}, last / 2, last}) {
        Uncovered left{1e30, 1e30};
        double time = 0.0;
        for (const int s : step.held[r]) {
            const Uncovered stage = uncovered_of(layout, step, r, s);
            left.gather = std::min(left.gather, stage.gather);
            left.reduce = std::min(left.reduce, stage.reduce);
            time += step.num_microbatches * step.stages[index(s)].busy();
        }
        least = std::max(least, time + left.gather + left.reduce);
    }
    return least;
}

void refresh_replicas(const Model& model,
                      const Layout& layout,
                      const Hardware& hardware,
                      StepModel& step) {
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        if (r > 1 && step.states[r].elements == step.states[r - 1].elements &&
            step.states[r].tied_elements == step.states[r - 1].tied_elements) {
            step.states[r] = step.states[r - 1];
            step.replicas[r] = step.replicas[r - 1];
            continue;
        }
        set_buckets(step.states[r], layout, step.held[r].size());
        set_state_bytes(step.states[r], model, layout);
        step.replicas[r] =
            replica_times(model, layout, hardware, step.states[r], step.num_microbatches);
    }
}

double replica_tail(const Layout& layout, const StepModel& step) {
    double tail = 0.0;
    for (const ReplicaTimes& times : step.replicas) {
        double after = times.tied + times.optimizer;
        if (layout.shards() && !layout.overlap_param_gather) after += times.gather;
        tail = std::max(tail, after);
    }
    return tail;
}

}  // namespace megacore::planner
