/// The state of a launch: fibers, warps, the block that runs.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "cuda_emulation/device.h"
#include "runtime/context.h"

namespace cuda_emulation {

inline constexpr int kMaxThreads = 1024;
inline constexpr int kLanes = 32;
inline constexpr std::size_t kStackBytes = 64 * 1024;

enum class Wait : std::uint8_t { kNothing, kBlockBarrier, kWarp, kExited };

/// A copy by cp.async that has not happened yet.
struct PendingCopy {
    std::byte* target;
    const std::byte* source;
    std::size_t size;
    std::size_t zeros;
    std::size_t group;
    Site site;
};

/// A thread of the block that runs. What every switch needs comes first, in one cache line.
struct alignas(64) Fiber {
    Context context;
    Site site;  ///< Where it waits.
    uint3 index{};
    unsigned wait_mask = 0;  ///< Lanes it waits for.
    std::uint16_t linear = 0;
    std::uint8_t lane = 0;
    Wait wait = Wait::kNothing;
    /// Race detection: the current segment (0: none yet), and for each lane of the warp the last
    /// segment count that this thread is ordered after.
    std::uint32_t segment = 0;
    std::uint32_t clock = 1;
    std::array<std::uint32_t, kLanes> ordered_after{};
    std::vector<PendingCopy> copies;
    std::size_t open_group = 0;
};

/// Lanes of a warp that meet under one mask. Two sets of values, because a lane may already be in
/// the next meeting while another still reads the results of the last.
struct Meeting {
    unsigned mask = 0;
    unsigned arrived = 0;
    int kind = -1;
    Site site;
    unsigned round = 0;
    std::array<std::array<std::uint64_t, kLanes>, 2> values{};
};

struct Warp {
    unsigned exited = 0;
    unsigned existing = 0;
    std::vector<Meeting> meetings;  // one for each mask in use
};

struct Machine {
    // The launch.
    const std::function<void()>* body = nullptr;
    const void* kernel = nullptr;
    dim3 grid{};
    dim3 block{};
    std::size_t dynamic_bytes = 0;
    bool checks = false;
    std::uint64_t random = 1;

    // The block.
    uint3 block_index{};
    std::uint32_t block_ordinal = 0;
    int num_threads = 0;
    int num_live = 0;
    int num_at_barrier = 0;
    int barrier_predicates = 0;  // how many of the arrived predicates were true
    int barrier_result = 0;
    BlockReduction barrier_kind = BlockReduction::kNone;
    Site barrier_site;
    std::uint32_t barrier_epoch = 0;
    std::vector<Warp> warps;
    std::vector<std::uint16_t> ready;
    Fiber* upcoming = nullptr;  // already taken out of `ready`

    // Fibers. `running` is null on the host.
    Fiber* running = nullptr;
    bool in_kernel = false;  // the running code is the kernel's, see Inside
    Context host;
    std::vector<Fiber> fibers;
    std::byte* stacks = nullptr;

    std::optional<std::string> fault;
    std::exception_ptr thrown;
};

extern Machine the_machine;
inline Machine& machine() { return the_machine; }

/// The machine, when it is a kernel that makes an access and checks are on.
inline Machine* checked_machine() {
    return the_machine.in_kernel && the_machine.checks ? &the_machine : nullptr;
}

/// Held by every function that kernels call: accesses from in here are not the kernel's. The linker
/// may have merged std::vector's functions with those of instrumented sources, so they are seen.
class Inside {
public:
    Inside() : before_(the_machine.in_kernel) { the_machine.in_kernel = false; }
    ~Inside() { the_machine.in_kernel = before_; }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;

private:
    bool before_;
};

std::uint32_t random_below(Machine& m, std::uint32_t bound);

/// Stops the calling fiber until somebody puts it into `ready`.
void suspend(Machine& m);
void make_ready(Machine& m, Fiber& fiber);

/// Called when a thread has ended: lets go, or reports, those who wait for it.
void thread_exits(Machine& m, Fiber& fiber);
void warp_loses(Machine& m, const Fiber& fiber);

/// Explains who waits where, when nobody can go on.
std::string describe_deadlock(const Machine& m);

inline Warp& warp_of(Machine& m, const Fiber& fiber) { return m.warps[fiber.linear / kLanes]; }

inline Fiber& fiber_of(Machine& m, const Fiber& self, int lane) {
    return m.fibers[self.linear / kLanes * kLanes + lane];
}

}  // namespace cuda_emulation
