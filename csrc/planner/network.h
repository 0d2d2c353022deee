/// Times of collectives on a two-level network.
///
/// Alpha-beta model: Thakur, Rabenseifner, Gropp, "Optimization of Collective Communication
/// Operations in MPICH" (2005), sections 3 and 4.
#pragma once

#include "planner/hardware.h"

namespace megacore::planner {

/// Where the members of a group are: `size` ranks, `stride` apart.
struct GroupPlace {
    int size = 1;
    int stride = 1;

    /// Members in one machine.
    int in_node(int gpus_per_node) const;
};

/// Bytes that one process sends in a gather or scatter of `bytes` (all parts together).
double shard_traffic(double bytes, int size);

/// Gather or reduce-scatter of `bytes` (all parts together): a ring that crosses from machine to
/// machine once per member there, so that `k` members use `k` adapters; between many machines also
/// a hierarchy (inside, then between), whichever takes less.
double shard_time(const Hardware& hardware, const GroupPlace& place, double bytes);

/// All-reduce: two of the above, or a tree between the machines where that takes less.
double all_reduce_time(const Hardware& hardware, const GroupPlace& place, double bytes);

/// One message to the next member of a group.
double send_time(const Hardware& hardware, const GroupPlace& place, double bytes);

/// Every member sends a different part of its `bytes` to every other.
double all_to_all_time(const Hardware& hardware, const GroupPlace& place, double bytes);

}  // namespace megacore::planner
