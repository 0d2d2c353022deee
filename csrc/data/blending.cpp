#include "data/blending.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "data/blend_argmax.h"
#include "data/blend_fixed_point.h"
#include "data/fault.h"

namespace megacore::data {
namespace {

/// The padded, aligned arrays behind a BlendState.
class BlendArrays {
public:
    explicit BlendArrays(std::span<const double> weights)
        : blocks_((weights.size() + kBlendBlock - 1) / kBlendBlock),
          storage_(new (std::align_val_t{64}) double[3 * padded()]) {
        std::fill_n(storage_.get(), padded(), 0.0);
        std::fill_n(counts(), 2 * padded(), std::numeric_limits<double>::infinity());
        std::copy(weights.begin(), weights.end(), storage_.get());
        std::fill_n(counts(), weights.size(), 0.0);
    }

    BlendState state() { return {storage_.get(), counts(), limits(), blocks_}; }
    double* counts() { return storage_.get() + padded(); }
    double* limits() { return storage_.get() + 2 * padded(); }

private:
    struct Delete {
        void operator()(double* pointer) const {
            ::operator delete[](pointer, std::align_val_t{64});
        }
    };
    std::size_t padded() const { return blocks_ * kBlendBlock; }

    std::size_t blocks_;
    std::unique_ptr<double[], Delete> storage_;
};

void check_count(std::size_t datasets, std::size_t places, std::size_t samples) {
    if (datasets < 1 || datasets > static_cast<std::size_t>(kMaxBlendDatasets)) {
        fault("blend: expected 1 to ", kMaxBlendDatasets, " datasets, found ", datasets);
    }
    MEGACORE_CHECK(places == samples, "blend: outputs of different sizes");
}

/// Runs the whole blend with the quickest steps that are exact for it.
void run_blend(BlendArrays& arrays,
               std::span<const double> weights,
               std::span<std::int16_t> dataset_index,
               std::span<std::int64_t> dataset_sample_index) {
    constexpr std::int64_t kExactRun = 1024;  // exact steps after fixed point gave up
    const auto size = static_cast<std::int64_t>(dataset_index.size());
    const BlendState state = arrays.state();
    const BlendSteps exact_steps = blend_steps();
    const bool fixed_point =
        has_fixed_point_blend() && weights.size() <= kFixedPointDatasets &&
        std::all_of(weights.begin(), weights.end(), [](double w) { return w <= 1.0; });
    for (std::int64_t i = 0; i < size;) {
        // Place 0 counts as place 1, which the fixed-point steps do not know of.
        if (i > 0 && fixed_point) {
            i += blend_steps_fixed_point(
                state, i, size - i, dataset_index.data() + i, dataset_sample_index.data() + i);
        }
        const std::int64_t count =
            fixed_point ? std::min(i == 0 ? 1 : kExactRun, size - i) : size - i;
        exact_steps(state, i, count, dataset_index.data() + i, dataset_sample_index.data() + i);
        i += count;
    }
}

/// Datasets of one weight take turns.
bool run_equal_weights(std::span<const double> weights,
                       std::span<std::int16_t> dataset_index,
                       std::span<std::int64_t> dataset_sample_index) {
    if (std::adjacent_find(weights.begin(), weights.end(), std::not_equal_to<>()) !=
        weights.end()) {
        return false;
    }
    std::size_t d = 0;
    std::int64_t turn = 0;
    for (std::size_t i = 0; i < dataset_index.size(); ++i) {
        dataset_index[i] = static_cast<std::int16_t>(d);
        dataset_sample_index[i] = turn;
        if (++d == weights.size()) {
            d = 0;
            ++turn;
        }
    }
    return true;
}

}  // namespace

void build_blend(std::span<const double> weights,
                 std::span<std::int16_t> dataset_index,
                 std::span<std::int64_t> dataset_sample_index) {
    check_count(weights.size(), dataset_index.size(), dataset_sample_index.size());
    for (std::size_t d = 0; d < weights.size(); ++d) {
        if (!std::isfinite(weights[d]) || weights[d] < 0) {
            fault("blend: expected weights >= 0, found ", weights[d], " for dataset ", d);
        }
    }
    if (run_equal_weights(weights, dataset_index, dataset_sample_index)) return;
    BlendArrays arrays(weights);
    run_blend(arrays, weights, dataset_index, dataset_sample_index);
}

void build_exhaustive_blend(std::span<const std::int64_t> sizes,
                            std::span<std::int16_t> dataset_index,
                            std::span<std::int64_t> dataset_sample_index) {
    check_count(sizes.size(), dataset_index.size(), dataset_sample_index.size());
    std::int64_t total = 0;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        if (sizes[d] < 0 || __builtin_add_overflow(total, sizes[d], &total)) {
            fault("blend: expected sizes >= 0 with a 64-bit sum, found ",
                  sizes[d],
                  " for dataset ",
                  d);
        }
    }
    MEGACORE_CHECK(static_cast<std::int64_t>(dataset_index.size()) == total,
                   "exhaustive blend: outputs must hold the sum of the sizes");
    std::vector<double> weights(sizes.size());
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        weights[d] = static_cast<double>(sizes[d]) / static_cast<double>(total);
    }
    BlendArrays arrays(weights);
    for (std::size_t d = 0; d < sizes.size(); ++d) {
        arrays.limits()[d] = static_cast<double>(sizes[d]);
        if (sizes[d] == 0) arrays.counts()[d] = std::numeric_limits<double>::infinity();
    }
    run_blend(arrays, weights, dataset_index, dataset_sample_index);
}

}  // namespace megacore::data
