// Barriers of a block: __syncthreads and the three that also reduce a predicate.
//
// All threads have to arrive at the same source line. A GPU may get away with less (it counts
// arrivals, and takes an exited thread for an arrived one), the CUDA programming guide does not.
#include <cstring>

#include "runtime/fault.h"
#include "runtime/machine.h"
#include "runtime/memory.h"
#include "runtime/races.h"

namespace cuda_emulation {
namespace {

bool same(Site a, Site b) { return a.line == b.line && std::strcmp(a.file, b.file) == 0; }

int result_of(const Machine& m) {
    switch (m.barrier_kind) {
        case BlockReduction::kCount:
            return m.barrier_predicates;
        case BlockReduction::kAnd:
            return m.barrier_predicates == m.num_at_barrier;
        case BlockReduction::kOr:
            return m.barrier_predicates > 0;
        default:
            return 0;
    }
}

// Everybody is here. `self` goes on by itself when it is one of them.
void release(Machine& m, const Fiber* self) {
    m.barrier_result = result_of(m);
    m.num_at_barrier = 0;
    m.barrier_predicates = 0;
    ++m.barrier_epoch;
    for (int linear = 0; linear < m.num_threads; ++linear) {
        Fiber& fiber = m.fibers[linear];
        fiber.segment = 0;  // what follows is ordered after what came before
        if (&fiber != self && fiber.wait == Wait::kBlockBarrier) make_ready(m, fiber);
    }
}

}  // namespace

int block_barrier(BlockReduction reduction, int value, Site site) {
    const Inside inside;
    Machine& m = machine();
    Fiber& self = *m.running;
    if (m.num_at_barrier == 0) {
        m.barrier_site = site;
        m.barrier_kind = reduction;
    } else if (m.checks && (!same(m.barrier_site, site) || m.barrier_kind != reduction)) {
        fail("divergent barrier",
             "  this thread reached the barrier at " + describe(site) +
                 "\n  while others wait at the barrier at " + describe(m.barrier_site) + "\n");
    }
    if (m.checks && m.num_live < m.num_threads) {
        fail("missing barrier",
             "  this thread reached the barrier at " + describe(site) + "\n  but " +
                 std::to_string(m.num_threads - m.num_live) +
                 " threads of the block have already ended\n");
    }
    ++m.num_at_barrier;
    m.barrier_predicates += value != 0;
    self.wait = Wait::kBlockBarrier;
    self.site = site;
    if (m.num_at_barrier == m.num_live) {
        release(m, &self);
        // The last to arrive is not the first to go on.
        make_ready(m, self);
    }
    suspend(m);
    return m.barrier_result;
}

void thread_exits(Machine& m, Fiber& fiber) {
    if (m.num_at_barrier > 0) {
        if (m.checks) {
            fail("missing barrier",
                 "  this thread has ended, while others wait at the barrier at " +
                     describe(m.barrier_site) + "\n");
        }
        if (m.num_at_barrier == m.num_live) release(m, nullptr);
    }
    warp_loses(m, fiber);
}

std::string describe_deadlock(const Machine& m) {
    std::string text;
    int shown = 0;
    for (int linear = 0; linear < m.num_threads && shown < 4; ++linear) {
        const Fiber& fiber = m.fibers[linear];
        if (fiber.wait == Wait::kExited) continue;
        // One thread for each place is enough.
        bool known = false;
        for (int before = 0; before < linear && !known; ++before) {
            const Fiber& other = m.fibers[before];
            known = other.wait == fiber.wait && other.wait_mask == fiber.wait_mask &&
                    same(other.site, fiber.site);
        }
        if (known) continue;
        ++shown;
        text += "  " + describe_thread(m, linear) + " waits at " + describe(fiber.site);
        if (fiber.wait == Wait::kWarp) {
            char mask[64];
            std::snprintf(mask, sizeof(mask), " for the lanes 0x%08x of its warp", fiber.wait_mask);
            text += mask;
        } else {
            text += " for the whole block";
        }
        text += "\n";
    }
    return text;
}

}  // namespace cuda_emulation
