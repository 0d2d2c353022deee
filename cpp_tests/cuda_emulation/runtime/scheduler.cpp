// Runs a launch: blocks one after another in random order, and whenever a thread stops, another one
// picked at random.
//
// A fiber that has to wait switches straight to the next one; only when nobody is ready does
// control go back to the host's stack, which then knows that the block has ended or hangs. Exited
// and failed fibers are never continued: their stacks are simply used again. That needs no
// unwinding, because device code has nothing to destroy.
#include <sys/mman.h>

#include <mutex>
#include <new>
#include <numeric>

#include "cuda_emulation/runtime_api.h"
#include "runtime/emulator.h"
#include "runtime/fault.h"
#include "runtime/machine.h"
#include "runtime/memory.h"
#include "runtime/races.h"
#include "runtime/symbols.h"

// Kernels see these as constants named blockDim and gridDim.
dim3 launched_block asm("blockDim");
dim3 launched_grid asm("gridDim");

namespace cuda_emulation {

Machine the_machine;

namespace {

// Stacks begin at different offsets; else all of them would fight for the same few sets of the
// processor's caches.
constexpr std::size_t kStackColour = 256;
constexpr std::size_t kColours = 128;
static_assert(kStackColour * kColours <= kStackBytes / 2);

void continue_as(Machine& m, Context& from, Fiber& next) {
    ++counters().switches;
    m.running = &next;
    next.wait = Wait::kNothing;
    switch_context(from, next.context);
}

Fiber* pick(Machine& m) {
    if (m.ready.empty()) return nullptr;
    const std::uint32_t at = random_below(m, static_cast<std::uint32_t>(m.ready.size()));
    const std::uint16_t linear = m.ready[at];
    m.ready[at] = m.ready.back();
    m.ready.pop_back();
    return &m.fibers[linear];
}

// The one after is picked already, so that its stack is in the cache by then.
Fiber* take_ready(Machine& m) {
    Fiber* taken = m.upcoming != nullptr ? m.upcoming : pick(m);
    m.upcoming = pick(m);
    if (m.upcoming != nullptr) __builtin_prefetch(m.upcoming->context.handle);
    return taken;
}

void leave(Machine& m, Context& from) {
    if (Fiber* next = take_ready(m)) {
        continue_as(m, from, *next);
    } else {
        m.running = nullptr;
        switch_context(from, m.host);
    }
}

void run_thread() {
    Machine& m = the_machine;
    Fiber& self = *m.running;
    try {
        m.in_kernel = true;
        (*m.body)();
        m.in_kernel = false;
    } catch (...) {
        m.in_kernel = false;
        m.thrown = std::current_exception();
        m.running = nullptr;
        switch_context(self.context, m.host);
    }
    self.wait = Wait::kExited;
    --m.num_live;
    thread_exits(m, self);
    leave(m, self.context);
    std::terminate();  // an exited fiber was continued
}

void prepare_pool(Machine& m) {
    if (m.stacks != nullptr) return;
    void* memory = mmap(nullptr,
                        kMaxThreads * kStackBytes,
                        PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                        -1,
                        0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    // Large pages, where there are any: a switch would miss the address cache every time.
    madvise(memory, kMaxThreads * kStackBytes, MADV_HUGEPAGE);
    m.stacks = static_cast<std::byte*>(memory);
    m.fibers.resize(kMaxThreads);
}

void prepare_block(Machine& m) {
    m.num_live = m.num_threads;
    m.num_at_barrier = 0;
    m.barrier_predicates = 0;
    m.barrier_epoch = 0;
    m.ready.clear();
    m.upcoming = nullptr;
    m.warps.resize((m.num_threads + kLanes - 1) / kLanes);
    for (Warp& warp : m.warps) {
        warp.exited = 0;
        warp.existing = 0;
        warp.meetings.clear();
    }
    for (int linear = 0; linear < m.num_threads; ++linear) {
        Fiber& fiber = m.fibers[linear];
        const unsigned x = static_cast<unsigned>(linear) % m.block.x;
        const unsigned rest = static_cast<unsigned>(linear) / m.block.x;
        fiber.index = {x, rest % m.block.y, rest / m.block.y};
        fiber.linear = static_cast<std::uint16_t>(linear);
        fiber.lane = static_cast<std::uint8_t>(linear % kLanes);
        fiber.wait = Wait::kNothing;
        fiber.segment = 0;
        fiber.clock = 1;
        fiber.ordered_after.fill(0);
        fiber.copies.clear();
        fiber.open_group = 0;
        warp_of(m, fiber).existing |= 1u << fiber.lane;
        const std::size_t colour = static_cast<std::size_t>(linear) % kColours * kStackColour;
        make_context(
            fiber.context, m.stacks + linear * kStackBytes, kStackBytes - colour, run_thread);
        m.ready.push_back(static_cast<std::uint16_t>(linear));
    }
}

void run_block(Machine& m, std::uint64_t ordinal) {
    m.block_ordinal = static_cast<std::uint32_t>(ordinal);
    m.block_index = {static_cast<unsigned>(ordinal % m.grid.x),
                     static_cast<unsigned>(ordinal / m.grid.x % m.grid.y),
                     static_cast<unsigned>(ordinal / m.grid.x / m.grid.y)};
    prepare_block(m);
    if (m.checks) {
        reset_shared_memory(m.dynamic_bytes);
        races_begin_block(m);
    }
    if (Fiber* first = take_ready(m)) continue_as(m, m.host, *first);
    if (m.thrown) std::rethrow_exception(std::exchange(m.thrown, nullptr));
    if (m.num_live > 0 && !m.fault) {
        m.fault = "CUDA fault: threads wait for each other for ever\n  kernel " +
                  symbol_name(m.kernel) + "\n" + describe_deadlock(m);
    }
    if (m.fault) {
        const std::string message = *m.fault;
        m.fault.reset();
        throw Fault(message);
    }
}

// Seeds next to each other give unrelated orders (splitmix64).
std::uint64_t scramble(std::uint64_t seed) {
    std::uint64_t z = seed + 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z ^ (z >> 31)) | 1u;
}

}  // namespace

Settings& settings() {
    static Settings the_settings;
    return the_settings;
}

Counters& counters() {
    static constinit Counters the_counters;
    return the_counters;
}

std::uint32_t random_below(Machine& m, std::uint32_t bound) {
    m.random ^= m.random << 13;
    m.random ^= m.random >> 7;
    m.random ^= m.random << 17;
    return static_cast<std::uint32_t>((m.random >> 32) * bound >> 32);
}

void make_ready(Machine& m, Fiber& fiber) { m.ready.push_back(fiber.linear); }

void suspend(Machine& m) {
    Fiber& self = *m.running;
    Fiber* next = take_ready(m);
    if (next == &self) {
        self.wait = Wait::kNothing;
        return;
    }
    if (next != nullptr) return continue_as(m, self.context, *next);
    m.running = nullptr;
    switch_context(self.context, m.host);
}

void run_grid(const cudaLaunchConfig_t& config,
              const void* kernel,
              const std::function<void()>& body) {
    static std::mutex one_launch;
    const std::lock_guard lock(one_launch);
    Machine& m = the_machine;
    prepare_pool(m);
    m.body = &body;
    m.kernel = kernel;
    m.grid = config.gridDim;
    m.block = config.blockDim;
    launched_grid = m.grid;
    launched_block = m.block;
    m.dynamic_bytes = config.dynamicSmemBytes;
    m.num_threads = static_cast<int>(m.block.x * m.block.y * m.block.z);
    m.checks = settings().checks;
    m.random = scramble(settings().seed);
    ++counters().launches;
    if (m.checks) races_begin_launch();

    const std::uint64_t num_blocks = std::uint64_t{m.grid.x} * m.grid.y * m.grid.z;
    std::vector<std::uint32_t> order(num_blocks);
    std::iota(order.begin(), order.end(), 0u);
    for (std::uint32_t left = static_cast<std::uint32_t>(num_blocks); left > 1; --left) {
        std::swap(order[left - 1], order[random_below(m, left)]);
    }
    for (const std::uint32_t ordinal : order) run_block(m, ordinal);
}

uint3 thread_index() { return the_machine.running->index; }
uint3 block_index() { return the_machine.block_index; }
int lane_index() { return the_machine.running->lane; }

void pass_time() {
    const Inside inside;
    Machine& m = the_machine;
    make_ready(m, *m.running);
    suspend(m);
}

}  // namespace cuda_emulation
