/// A cluster, as the constants of its cost model. Where each comes from is kept in the profile
/// files.
#pragma once

#include <cstdint>

namespace megacore::planner {

/// A level of the network: what one process can send through it.
struct Link {
    double bytes_per_s = 1e9;  ///< One direction, as the data sheet says.
    double efficiency = 1.0;   ///< Share of it that large collectives reach.
    double latency_s = 0.0;    ///< Of one step of a collective.

    double rate() const { return bytes_per_s * efficiency; }
};

struct Hardware {
    int gpus_per_node = 8;
    double memory_bytes = 80e9;
    double reserve_bytes = 0.0;    ///< Context, libraries, communication buffers.
    double allocator_slack = 0.0;  ///< Share of activations lost to fragments.
    double peak_flops = 1e12;      ///< In the dtype of the model.

    // Products of matrices: peak * efficiency, less what tiles at the edges, incomplete waves of
    // tiles and the beginning and end of the inner loop (half_k elements of it) lose.
    double matmul_efficiency = 0.7;
    double matmul_half_k = 0.0;
    int num_units = 1;  ///< Multiprocessors; 0: no tiles (CPU).
    int tile_rows = 128;
    int tile_cols = 256;
    double weight_grad_efficiency = 1.0;  ///< Of products that add to fp32 gradients, relative.

    double attention_forward_efficiency = 0.5;  ///< Of the peak, flash attention.
    double attention_backward_efficiency = 0.4;
    double batched_matmul_efficiency = 0.3;  ///< Of the peak, products of unfused attention.

    double memory_rate = 1e12;     ///< Bytes per second that kernels bound by memory reach.
    double op_overhead_s = 0.0;    ///< Each kernel, beside its work.
    double step_overhead_s = 0.0;  ///< Each step.
    /// Share of the time of communication behind compute by which it slows the compute.
    double overlap_cost = 0.0;
    /// Share by which a step gets longer each time the number of machines doubles.
    double straggling = 0.0;

    Link inside;   ///< Between the processes of a machine.
    Link between;  ///< From one machine to another.
};

}  // namespace megacore::planner
