#include "pipeline/costs.h"

#include <cmath>
#include <cstddef>

#include "core/check.h"

namespace megacore::pipeline {
namespace {

std::vector<double> per_stage(const std::vector<double>& values, int num_stages, const char* what) {
    const auto count = static_cast<std::size_t>(num_stages);
    MEGACORE_CHECK(values.size() == 1 || values.size() == count,
                   "costs: expected one value or one per stage (",
                   num_stages,
                   ") for ",
                   what,
                   ", found ",
                   values.size());
    for (const double value : values) {
        MEGACORE_CHECK(std::isfinite(value) && value >= 0.0,
                       "costs: expected finite values of at least 0 for ",
                       what,
                       ", found ",
                       value);
    }
    return values.size() == count ? values : std::vector<double>(count, values.front());
}

std::vector<double> divided(const Placement& placement, const std::vector<double>& share) {
    std::vector<double> out;
    if (share.empty()) return out;
    MEGACORE_CHECK(
        share.size() == 1, "costs of a rank's share: expected one value, found ", share.size());
    for (const auto& chain : placement.chains) {
        const double part =
            static_cast<double>(placement.num_ranks) / static_cast<double>(chain.size());
        out.insert(out.end(), chain.size(), share.front() * part);
    }
    return out;
}

}  // namespace

void check_costs(const Costs& costs, int num_stages) { costs_per_stage(costs, num_stages); }

Costs costs_per_stage(const Costs& costs, int num_stages) {
    Costs out = costs;
    const auto expand = [&](std::vector<double> Costs::* member, const char* what) {
        out.*member = per_stage(costs.*member, num_stages, what);
    };
    expand(&Costs::forward_us, "forward_us");
    expand(&Costs::input_grad_us, "input_grad_us");
    expand(&Costs::weight_grad_us, "weight_grad_us");
    expand(&Costs::reduce_grad_us, "reduce_grad_us");
    expand(&Costs::gather_param_us, "gather_param_us");
    expand(&Costs::activation_bytes, "activation_bytes");
    if (!costs.pair_us.empty()) expand(&Costs::pair_us, "pair_us");
    if (costs.kept_bytes.empty()) {
        out.kept_bytes = out.activation_bytes;
    } else {
        expand(&Costs::kept_bytes, "kept_bytes");
    }
    if (costs.backward_us.empty()) {
        out.backward_us = out.input_grad_us;
        for (std::size_t s = 0; s < out.backward_us.size(); ++s) {
            out.backward_us[s] += out.weight_grad_us[s];
        }
    } else {
        expand(&Costs::backward_us, "backward_us");
    }
    per_stage({costs.transfer_us, costs.latency_us, costs.post_us}, 3, "transfers");
    return out;
}

Costs share_costs(const Placement& placement, const Costs& share) {
    Costs costs = share;
    for (auto member : {&Costs::forward_us,
                        &Costs::input_grad_us,
                        &Costs::weight_grad_us,
                        &Costs::backward_us,
                        &Costs::pair_us,
                        &Costs::reduce_grad_us,
                        &Costs::gather_param_us,
                        &Costs::activation_bytes,
                        &Costs::kept_bytes}) {
        costs.*member = divided(placement, share.*member);
    }
    return costs;
}

}  // namespace megacore::pipeline
