#include "planner/candidates.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "core/check.h"
#include "pipeline/schedules.h"

namespace megacore::planner {
namespace {

std::size_t index(int i) { return static_cast<std::size_t>(i); }

/// Micro-batches after which a schedule only repeats itself, as far as its memory goes.
int settled(const Layout& layout, int num_microbatches) {
    const int enough = 4 * layout.pipeline;
    if (num_microbatches <= enough) return num_microbatches;
    return enough + num_microbatches % layout.pipeline;
}

/// Gives the first and the last stage fewer layers, where the layers do not divide equally.
void divide_unevenly(Layout& layout, int num_layers) {
    const int p = layout.pipeline;
    if (num_layers % p == 0 || p < 3) return;
    const int others = (num_layers + p - 1) / p;
    const int rest = num_layers - others * (p - 2);
    if (rest < 2) return;
    layout.last_layers = rest / 2;
    layout.first_layers = rest - rest / 2;
}

}  // namespace

Candidates::Candidates(const Model& model, const Hardware& hardware, const SearchSpace& space)
    : model_(model), hardware_(hardware), space_(space) {
    add_degrees();
    std::sort(list_.begin(), list_.end(), [](const Candidate& a, const Candidate& b) {
        return a.bound_s < b.bound_s;
    });
    counts_.fitting = static_cast<std::int64_t>(list_.size());
}

Layout Candidates::layout_of(const Candidate& candidate) const {
    Layout layout = families_[index(candidate.family)];
    layout.sharding = candidate.sharding;
    layout.recompute = candidate.recompute;
    layout.overlap_grad_reduce = candidate.overlap_grad_reduce;
    layout.overlap_param_gather = candidate.overlap_param_gather;
    return layout;
}

std::int64_t Candidates::num_variants() const {
    return static_cast<std::int64_t>(space_.sharding.size() * space_.recompute.size() *
                                     space_.overlap_grad_reduce.size() *
                                     space_.overlap_param_gather.size());
}

void Candidates::reject(const std::string& reason, const Layout& example) {
    const auto [found, is_new] = rejection_of_.try_emplace(reason, counts_.rejections.size());
    if (is_new) counts_.rejections.push_back({reason, 0, example});
    ++counts_.rejections[found->second].count;
}

void Candidates::reject_variants(const std::string& reason, const Layout& layout) {
    reject(reason, layout);
    counts_.rejections[rejection_of_[reason]].count += num_variants() - 1;
    counts_.considered += num_variants();
}

void Candidates::add_degrees() {
    Layout layout;
    layout.order = space_.order;
    for (const int tensor : space_.tensor) {
        for (const int context : space_.context) {
            for (const int pipeline : space_.pipeline) {
                layout.tensor = tensor;
                layout.context = context;
                layout.pipeline = pipeline;
                const std::int64_t parts = std::int64_t{tensor} * context * pipeline;
                if (space_.gpus % parts != 0) continue;
                layout.data = static_cast<int>(space_.gpus / parts);
                add_micro_batches(layout);
            }
        }
    }
}

void Candidates::add_micro_batches(Layout layout) {
    for (const int micro_batch : space_.micro_batch) {
        layout.micro_batch = micro_batch;
        for (const bool sequence : space_.sequence_parallel) {
            layout.sequence_parallel = sequence && layout.tensor > 1;
            if (sequence != layout.sequence_parallel) continue;
            for (const bool overlap : space_.tp_comm_overlap) {
                layout.tp_comm_overlap = overlap;
                if (overlap && !sequence) continue;
                // What is refused for any schedule is refused once.
                Layout plain = layout;
                plain.pipeline = 1;
                const auto reason = refusal(plain, model_, space_.global_batch);
                if (!reason.empty()) {
                    reject_variants(std::string(reason), layout);
                    continue;
                }
                add_schedules(layout, block_costs(model_, layout, hardware_));
            }
        }
    }
}

void Candidates::add_schedules(Layout layout, const BlockCosts& blocks) {
    if (layout.pipeline == 1) {
        add_variants(layout, blocks);
        return;
    }
    for (const std::string& schedule : space_.schedules) {
        layout.schedule = schedule;
        if (schedule == "interleaved") {
            for (const int stages : space_.virtual_stages) {
                if (stages < 2) continue;
                layout.virtual_stages = stages;
                add_variants(layout, blocks);
            }
        } else {
            layout.virtual_stages = is_v_shaped(schedule) ? 2 : 1;
            Layout even = layout;
            if (!is_v_shaped(schedule)) divide_unevenly(even, model_.total_layers());
            add_variants(even, blocks);
        }
    }
}

void Candidates::add_variants(Layout layout, const BlockCosts& blocks) {
    const int m = layout.num_microbatches(space_.global_batch);
    if (const auto reason = refusal(layout, model_, space_.global_batch); !reason.empty()) {
        reject_variants(std::string(reason), layout);
        return;
    }
    if (layout.pipeline > 1 && in_flight(layout, m).empty()) {
        reject_variants("the schedule cannot be made for so few micro-batches", layout);
        return;
    }
    families_.push_back(layout);
    for (const Recompute recompute : space_.recompute) {
        layout.recompute = recompute;
        layout.sharding = Sharding::kNone;
        StepModel step = step_model(model_, layout, hardware_, blocks, space_.global_batch, false);
        const double pipeline_s = least_pipeline_time(layout, step);
        for (const Sharding sharding : space_.sharding) {
            layout.sharding = sharding;
            for (const bool reduce : space_.overlap_grad_reduce) {
                layout.overlap_grad_reduce = reduce;
                for (const bool gather : space_.overlap_param_gather) {
                    layout.overlap_param_gather = gather;
                    ++counts_.considered;
                    const auto reason = refusal(layout, model_, space_.global_batch);
                    if (!reason.empty()) {
                        reject(std::string(reason), layout);
                        continue;
                    }
                    ++counts_.legal;
                    refresh_replicas(model_, layout, hardware_, step);
                    add_candidate(layout, step, pipeline_s);
                }
            }
        }
    }
}

void Candidates::add_candidate(const Layout& layout, const StepModel& step, double pipeline_s) {
    const std::vector<double>* flying = nullptr;
    if (layout.pipeline > 1) flying = &in_flight(layout, step.num_microbatches);
    for (std::size_t r = 0; r < step.held.size(); ++r) {
        double kept = 0.0;
        for (const int s : step.held[r]) {
            const double bytes = step.stages[index(s)].kept_bytes;
            kept = kept == 0.0 ? bytes : std::min(kept, bytes);
        }
        kept *= flying == nullptr ? 1.0 : (*flying)[r];
        const double bytes =
            step.states[r].total() + step.states[r].in_use_bytes + kept + hardware_.reserve_bytes;
        if (bytes > space_.memory_bytes) {
            reject("does not fit into memory", layout);
            return;
        }
    }
    Candidate candidate;
    candidate.bound_s = std::max(pipeline_s, least_replica_time(layout, step)) +
                        replica_tail(layout, step) + hardware_.step_overhead_s;
    candidate.family = static_cast<std::int32_t>(families_.size()) - 1;
    candidate.sharding = layout.sharding;
    candidate.recompute = layout.recompute;
    candidate.overlap_grad_reduce = layout.overlap_grad_reduce;
    candidate.overlap_param_gather = layout.overlap_param_gather;
    list_.push_back(candidate);
}

const std::vector<double>& Candidates::in_flight(const Layout& layout, int num_microbatches) {
    const int m = settled(layout, num_microbatches);
    const auto key = std::make_tuple(layout.schedule, layout.pipeline, layout.virtual_stages, m);
    const auto [found, is_new] = in_flight_.try_emplace(key);
    if (!is_new) return found->second;
    pipeline::ScheduleOptions options;
    options.num_ranks = layout.pipeline;
    options.num_microbatches = m;
    options.num_chunks = layout.schedule == "interleaved" ? layout.virtual_stages : 0;
    options.costs.kept_bytes = {0.0};
    try {
        const auto schedule = pipeline::make_schedule(layout.schedule, options);
        const auto simulation = pipeline::simulate(schedule, options.costs);
        for (const auto& rank : simulation.ranks) found->second.push_back(rank.peak_bytes);
    } catch (const Error&) {
        found->second.clear();  // it cannot be made for so few micro-batches
    }
    return found->second;
}

}  // namespace megacore::planner
