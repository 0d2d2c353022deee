#include "planner/network.h"

#include <algorithm>
#include <cmath>

namespace megacore::planner {
namespace {

/// What one member can send to other machines while k members in its machine do too: the group as a
/// whole has k adapters, and each crossing carries what the whole group sends.
double crossing_rate(const Hardware& hardware, int members_in_node) {
    return std::min(hardware.inside.rate(), members_in_node * hardware.between.rate());
}

struct Shape {
    int in_node;
    int nodes;
};

Shape shape_of(const Hardware& hardware, const GroupPlace& place) {
    const int in_node = place.in_node(hardware.gpus_per_node);
    return {in_node, (place.size + in_node - 1) / in_node};
}

}  // namespace

int GroupPlace::in_node(int gpus_per_node) const {
    if (stride >= gpus_per_node) return 1;
    return std::clamp(gpus_per_node / stride, 1, size);
}

double shard_traffic(double bytes, int size) { return bytes * (size - 1) / size; }

double shard_time(const Hardware& hardware, const GroupPlace& place, double bytes) {
    if (place.size <= 1 || bytes <= 0.0) return 0.0;
    const auto [in_node, nodes] = shape_of(hardware, place);
    const double sent = shard_traffic(bytes, place.size);
    if (nodes == 1) {
        return sent / hardware.inside.rate() + (place.size - 1) * hardware.inside.latency_s;
    }
    const double ring = sent / crossing_rate(hardware, in_node) +
                        (place.size - nodes) * hardware.inside.latency_s +
                        (nodes - 1) * hardware.between.latency_s;
    // Between the machines with recursive halving: as many bytes, fewer steps.
    const double between = shard_traffic(bytes / in_node, nodes) / hardware.between.rate() +
                           std::ceil(std::log2(nodes)) * hardware.between.latency_s;
    const double inside = shard_traffic(bytes, in_node) / hardware.inside.rate() +
                          (in_node - 1) * hardware.inside.latency_s;
    return std::min(ring, between + inside);
}

double all_reduce_time(const Hardware& hardware, const GroupPlace& place, double bytes) {
    if (place.size <= 1 || bytes <= 0.0) return 0.0;
    const double rings = 2.0 * shard_time(hardware, place, bytes);
    const auto [in_node, nodes] = shape_of(hardware, place);
    if (nodes == 1) return rings;
    const double steps = 2.0 * (std::ceil(std::log2(nodes)) * hardware.between.latency_s +
                                (in_node - 1) * hardware.inside.latency_s);
    const double tree = 2.0 * bytes / crossing_rate(hardware, in_node) + steps;
    return std::min(rings, tree);
}

double send_time(const Hardware& hardware, const GroupPlace& place, double bytes) {
    if (place.size <= 1 || bytes <= 0.0) return 0.0;
    const bool stays = place.in_node(hardware.gpus_per_node) == place.size;
    const Link& link = stays ? hardware.inside : hardware.between;
    return bytes / link.rate() + link.latency_s;
}

double all_to_all_time(const Hardware& hardware, const GroupPlace& place, double bytes) {
    if (place.size <= 1 || bytes <= 0.0) return 0.0;
    const auto [in_node, nodes] = shape_of(hardware, place);
    const double outside = static_cast<double>(place.size - in_node) / place.size;
    const double inside = static_cast<double>(in_node - 1) / place.size;
    return std::max(bytes * outside / hardware.between.rate(),
                    bytes * inside / hardware.inside.rate()) +
           (in_node - 1) * hardware.inside.latency_s + (nodes - 1) * hardware.between.latency_s;
}

}  // namespace megacore::planner
