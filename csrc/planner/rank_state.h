/// Parameters, gradients and optimizer state of one process, from the layout of its buffers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "planner/layout.h"
#include "planner/model.h"

namespace megacore::planner {

struct RankState {
    double elements = 0.0;      ///< Of the buffers, with padding.
    double own_elements = 0.0;  ///< That this process updates.
    double buckets = 0.0;
    double largest_unit = 0.0;    ///< Elements of the largest layer.
    double replicated = 0.0;      ///< Elements whose gradients sequence parallelism sums.
    double tied_elements = 0.0;   ///< Of a word embedding that another rank holds too.
    double layer_elements = 0.0;  ///< Of them, those of layers.
    double in_use_bytes = 0.0;    ///< Gathered parameters, gradients not yet reduced.
    double parameter_bytes = 0.0;
    double gradient_bytes = 0.0;
    double main_parameter_bytes = 0.0;
    double main_gradient_bytes = 0.0;
    double optimizer_bytes = 0.0;

    double total() const {
        return parameter_bytes + gradient_bytes + main_parameter_bytes + main_gradient_bytes +
               optimizer_bytes;
    }
};

/// @param stages  what the rank holds
/// @param tied_apart  first and last stage are on different ranks
/// @param exact  place every parameter as training does; else only count the elements
RankState rank_state(const Model& model,
                     const Layout& layout,
                     const std::vector<StageContent>& stages,
                     bool tied_apart,
                     bool exact);

/// Sets own elements and bytes from the elements.
void set_state_bytes(RankState& state, const Model& model, const Layout& layout);

/// Sets the number of buckets from the elements, for a rank with `num_stages` buffers.
void set_buckets(RankState& state, const Layout& layout, std::size_t num_stages);

/// Bytes of one element of the sums of gradients.
int gradient_element_bytes(const Model& model);

}  // namespace megacore::planner
