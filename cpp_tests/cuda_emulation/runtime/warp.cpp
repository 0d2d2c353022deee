// Warps: meetings under a mask, and what is made of them: shuffles, votes, reductions, barriers.
#include "runtime/warp.h"

#include <algorithm>
#include <bit>
#include <cstdio>

#include "runtime/fault.h"
#include "runtime/races.h"

namespace cuda_emulation {
namespace {

std::string hex(unsigned mask) {
    char text[16];
    std::snprintf(text, sizeof(text), "0x%08x", mask);
    return text;
}

std::size_t find_meeting(Warp& warp, unsigned mask) {
    for (std::size_t i = 0; i < warp.meetings.size(); ++i) {
        if (warp.meetings[i].mask == mask) return i;
    }
    warp.meetings.emplace_back().mask = mask;
    return warp.meetings.size() - 1;
}

// Lets everybody of the meeting go on once the last has come.
void try_complete(Machine& m, Warp& warp, Meeting& meeting, std::size_t warp_index) {
    const unsigned expected = meeting.mask & warp.existing & ~warp.exited;
    if ((meeting.arrived & expected) != expected) return;
    if (m.checks && meeting.kind == static_cast<int>(WarpOperation::kBarrier)) {
        races_order_lanes(m, warp_index, expected);
    }
    meeting.arrived = 0;
    ++meeting.round;
    for (unsigned left = expected; left != 0; left &= left - 1) {
        make_ready(m, m.fibers[warp_index * kLanes + std::countr_zero(left)]);
    }
}

void check_source(Machine& m, unsigned mask, int source, Site site) {
    const Warp& warp = warp_of(m, *m.running);
    if (mask >> source & 1u && warp.existing >> source & 1u) return;
    fail("shuffle reads a lane that takes no part",
         "  lane " + std::to_string(source) + " is not in the mask " + hex(mask) +
             " or does not exist, at " + describe(site) + "\n");
}

}  // namespace

const std::array<std::uint64_t, kLanes>& meet(
    Machine& m, unsigned mask, int operation, std::uint64_t value, Site site) {
    Fiber& self = *m.running;
    Warp& warp = warp_of(m, self);
    if ((mask >> self.lane & 1u) == 0) {
        fail("warp operation without its caller",
             "  lane " + std::to_string(self.lane) + " is not in the mask " + hex(mask) + ", at " +
                 describe(site) + "\n");
    }
    const std::size_t at = find_meeting(warp, mask);
    Meeting& meeting = warp.meetings[at];
    const unsigned round = meeting.round & 1u;
    if (meeting.arrived == 0) {
        meeting.kind = operation;
        meeting.site = site;
    } else if (meeting.kind != operation) {
        fail("lanes of a warp meet in different operations",
             "  this lane is at " + describe(site) + "\n  others of the mask " + hex(mask) +
                 " are at " + describe(meeting.site) + "\n");
    }
    meeting.arrived |= 1u << self.lane;
    meeting.values[round][self.lane] = value;
    self.wait = Wait::kWarp;
    self.wait_mask = mask;
    self.site = site;
    try_complete(m, warp, meeting, self.linear / kLanes);
    suspend(m);
    return warp.meetings[at].values[round];
}

void warp_loses(Machine& m, const Fiber& fiber) {
    Warp& warp = warp_of(m, fiber);
    warp.exited |= 1u << fiber.lane;
    for (Meeting& meeting : warp.meetings) {
        if (meeting.arrived != 0 && (meeting.mask >> fiber.lane & 1u)) {
            try_complete(m, warp, meeting, fiber.linear / kLanes);
        }
    }
}

void warp_barrier(unsigned mask, Site site) {
    const Inside inside;
    meet(machine(), mask, static_cast<int>(WarpOperation::kBarrier), 0, site);
}

std::uint64_t shuffle(
    Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width, Site site) {
    const Inside inside;
    Machine& m = machine();
    if (width < 1 || width > kLanes || !std::has_single_bit(static_cast<unsigned>(width))) {
        fail("shuffle of a width that is no power of two up to 32",
             "  width " + std::to_string(width) + ", at " + describe(site) + "\n");
    }
    const int lane = m.running->lane;
    const int first = lane & ~(width - 1);
    const int last = first + width - 1;
    // Outside of the segment a lane gets its own value.
    int source = lane;
    const unsigned distance = std::min(static_cast<unsigned>(operand), 64u);
    switch (kind) {
        case Shuffle::kIndex:
            source = first + (operand & (width - 1));
            break;
        case Shuffle::kUp:
            source = lane - static_cast<int>(distance);
            if (source < first) source = lane;
            break;
        case Shuffle::kDown:
            source = lane + static_cast<int>(distance);
            if (source > last) source = lane;
            break;
        case Shuffle::kXor:
            source = lane ^ (operand & (kLanes - 1));
            if (source > last) source = lane;
            break;
    }
    if (m.checks) check_source(m, mask, source, site);
    const int operation = static_cast<int>(WarpOperation::kShuffle) + static_cast<int>(kind);
    return meet(m, mask, operation, value, site)[source];
}

unsigned ballot(unsigned mask, bool predicate, Site site) {
    const Inside inside;
    Machine& m = machine();
    const auto& values =
        meet(m, mask, static_cast<int>(WarpOperation::kBallot), predicate ? 1 : 0, site);
    const Warp& warp = warp_of(m, *m.running);
    unsigned lanes = 0;
    for (unsigned left = mask & warp.existing; left != 0; left &= left - 1) {
        const int lane = std::countr_zero(left);
        if (values[lane] != 0) lanes |= 1u << lane;
    }
    return lanes;
}

unsigned match(unsigned mask, std::uint64_t value, Site site) {
    const Inside inside;
    Machine& m = machine();
    const auto& values = meet(m, mask, static_cast<int>(WarpOperation::kMatch), value, site);
    const Warp& warp = warp_of(m, *m.running);
    unsigned lanes = 0;
    for (unsigned left = mask & warp.existing; left != 0; left &= left - 1) {
        const int lane = std::countr_zero(left);
        if (values[lane] == value) lanes |= 1u << lane;
    }
    return lanes;
}

std::int64_t warp_reduce(Reduction kind, unsigned mask, std::int64_t value, Site site) {
    const Inside inside;
    Machine& m = machine();
    const int operation = static_cast<int>(WarpOperation::kReduce) + static_cast<int>(kind);
    const auto& values = meet(m, mask, operation, static_cast<std::uint64_t>(value), site);
    std::int64_t result = value;
    const unsigned others = mask & warp_of(m, *m.running).existing & ~(1u << m.running->lane);
    for (unsigned left = others; left != 0; left &= left - 1) {
        const auto other = static_cast<std::int64_t>(values[std::countr_zero(left)]);
        switch (kind) {
            case Reduction::kAdd:
                result += other;
                break;
            case Reduction::kMin:
                result = std::min(result, other);
                break;
            case Reduction::kMax:
                result = std::max(result, other);
                break;
            case Reduction::kAnd:
                result &= other;
                break;
            case Reduction::kOr:
                result |= other;
                break;
            case Reduction::kXor:
                result ^= other;
                break;
        }
    }
    return result;
}

}  // namespace cuda_emulation
