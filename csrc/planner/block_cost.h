/// What one micro-batch costs in the parts of a model: time by kind, activations, traffic.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "planner/hardware.h"
#include "planner/layout.h"
#include "planner/model.h"

namespace megacore::planner {

/// Seconds of one pass, by what they are spent on. Hidden communication runs behind compute and is
/// not part of the total, but for the share by which it slows the compute.
struct PassTime {
    double matmul = 0.0;
    double attention = 0.0;
    double memory = 0.0;  ///< Kernels bound by memory.
    double launch = 0.0;
    double tensor = 0.0;  ///< Exposed communication of the axis.
    double context = 0.0;
    double data = 0.0;
    double tensor_hidden = 0.0;
    double context_hidden = 0.0;
    double data_hidden = 0.0;

    double compute() const { return matmul + attention + memory + launch; }
    double total() const { return compute() + tensor + context + data; }
    PassTime& operator+=(const PassTime& other);
    friend PassTime operator+(PassTime a, const PassTime& b) { return a += b; }
    friend PassTime operator*(double factor, const PassTime& pass);
};

/// One operation of a block, without its communication.
struct OpCost {
    std::string name;
    std::string category;  ///< "matmul", "attention" or "memory_bound".
    double forward_s = 0.0;
    double input_grad_s = 0.0;
    double weight_grad_s = 0.0;
};

/// A layer, the embedding, or final norm, output layer and loss.
struct BlockCost {
    std::vector<OpCost> ops;  ///< Filled on request only.
    PassTime forward;
    PassTime input_grad;  ///< Backward without what can be deferred.
    PassTime weight_grad;
    PassTime core_again;                ///< Forward of core attention, for selective recompute.
    double kept_bytes = 0.0;            ///< Activations from forward to backward, everything kept.
    double core_bytes = 0.0;            ///< The part that selective recompute does not keep.
    double input_bytes = 0.0;           ///< The input alone: what full recompute keeps.
    double deferred_bytes = 0.0;        ///< Kept from the input gradient to the weight gradient.
    double transient_bytes = 0.0;       ///< For a while, in the pass that uses most.
    double tensor_forward_bytes = 0.0;  ///< What a process sends to its tensor-parallel group.
    double tensor_backward_bytes = 0.0;
    double context_forward_bytes = 0.0;
    double context_backward_bytes = 0.0;
};

/// The parts of a model. An encoder-decoder has a second kind of layer.
struct BlockCosts {
    BlockCost layer;
    BlockCost decoder_layer;
    BlockCost embedding;
    BlockCost output;
    double boundary_bytes = 0.0;  ///< Of the tensor between two pipeline stages, per process.
};

/// @param with_ops  list the operations too
BlockCosts block_costs(const Model& model,
                       const Layout& layout,
                       const Hardware& hardware,
                       bool with_ops = false);

/// Seconds of a product of (rows x inner) and (inner x cols).
///
/// @param accumulates  the result is added to fp32 values
double matmul_time(const Hardware& hardware,
                   double rows,
                   double cols,
                   double inner,
                   int dtype_bytes,
                   bool accumulates = false);

}  // namespace megacore::planner
