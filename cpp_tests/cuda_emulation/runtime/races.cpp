#include "runtime/races.h"

#include <algorithm>
#include <bit>
#include <map>
#include <set>

#include "runtime/emulator.h"
#include "runtime/fault.h"
#include "runtime/symbols.h"

namespace cuda_emulation {
namespace {

constexpr std::uint32_t kAtomicBit = 0x80000000u;

struct Segment {
    std::uint32_t block;
    std::uint32_t epoch;
    std::uint32_t clock;
    std::uint16_t thread;
};

struct Records {
    std::vector<Segment> segments;   // of this launch
    std::uint32_t launch_first = 1;  // number of segments[0]
    std::uint32_t block_first = 1;
    std::set<std::uint32_t> ordered_blocks;                           // before the block that runs
    std::map<const void*, std::set<std::uint32_t>> blocks_by_atomic;  // address -> blocks
};

Records records;

std::uint32_t next_number() {
    return records.launch_first + static_cast<std::uint32_t>(records.segments.size());
}

const Segment& segment(std::uint32_t number) {
    return records.segments[(number & ~kAtomicBit) - records.launch_first];
}

std::uint32_t current_segment(Machine& m) {
    Fiber& fiber = *m.running;
    if (fiber.segment == 0) {
        fiber.segment = next_number();
        records.segments.push_back({m.block_ordinal, m.barrier_epoch, fiber.clock, fiber.linear});
    }
    return fiber.segment;
}

bool is_ordered(const Machine& m, std::uint32_t before, bool shared) {
    const std::uint32_t number = before & ~kAtomicBit;
    if (number < (shared ? records.block_first : records.launch_first)) return true;
    const Segment& other = segment(before);
    const Fiber& self = *m.running;
    if (other.block != m.block_ordinal) return records.ordered_blocks.contains(other.block);
    if (other.thread == self.linear || other.epoch < m.barrier_epoch) return true;
    if (other.thread / kLanes != self.linear / kLanes) return false;
    return self.ordered_after[other.thread % kLanes] >= other.clock;
}

std::uint32_t pack_pc(const Origin& origin) {
    if (origin.pc == nullptr) return 0;
    return static_cast<std::uint32_t>(static_cast<const std::byte*>(origin.pc) - image_base());
}

const char* word(Access access) {
    switch (access) {
        case Access::kRead:
            return "read";
        case Access::kWrite:
            return "write";
        default:
            return "atomic";
    }
}

[[noreturn]] void report(Machine& m,
                         const void* address,
                         std::size_t size,
                         Access access,
                         const Origin& origin,
                         std::uint32_t other,
                         std::uint32_t other_pc,
                         Access other_access,
                         bool shared) {
    const Segment& before = segment(other);
    std::string text =
        "  " + std::string(word(access)) + " of " + std::to_string(size) + " bytes at " +
        (origin.pc ? describe_code(origin.pc) : describe(origin.site)) + "\n  address " +
        describe_address(address) + "\n  not ordered after the " + word(other_access) + " by ";
    if (before.block != m.block_ordinal) {
        text += "block " + std::to_string(before.block) + ", thread number " +
                std::to_string(before.thread);
    } else {
        text += describe_thread(m, before.thread);
    }
    if (other_pc != 0) text += " at " + describe_code(image_base() + other_pc);
    fail(shared ? "race on shared memory" : "race on global memory", text + "\n");
}

}  // namespace

void races_begin_launch() {
    records.launch_first = next_number();
    records.block_first = records.launch_first;
    records.segments.clear();
    records.blocks_by_atomic.clear();
}

void races_begin_block(Machine&) {
    records.block_first = next_number();
    records.ordered_blocks.clear();
}

void races_order_lanes(Machine& m, std::size_t warp, unsigned lanes) {
    std::array<std::uint32_t, kLanes> merged{};
    for (unsigned left = lanes; left != 0; left &= left - 1) {
        const int lane = std::countr_zero(left);
        const Fiber& fiber = m.fibers[warp * kLanes + lane];
        for (int i = 0; i < kLanes; ++i) {
            merged[i] = std::max(merged[i], fiber.ordered_after[i]);
        }
        merged[lane] = std::max(merged[lane], fiber.clock);
    }
    for (unsigned left = lanes; left != 0; left &= left - 1) {
        Fiber& fiber = m.fibers[warp * kLanes + std::countr_zero(left)];
        fiber.ordered_after = merged;
        ++fiber.clock;
        fiber.segment = 0;
    }
}

void races_order_blocks(Machine& m, const void* address) {
    std::set<std::uint32_t>& blocks = records.blocks_by_atomic[address];
    records.ordered_blocks.insert(blocks.begin(), blocks.end());
    blocks.insert(records.ordered_blocks.begin(), records.ordered_blocks.end());
    blocks.insert(m.block_ordinal);
}

void record_access(Machine& m,
                   ByteHistory* history,
                   const void* address,
                   std::size_t size,
                   Access access,
                   bool shared,
                   const Origin& origin) {
    const std::uint32_t self = current_segment(m);
    const std::uint32_t mark = access == Access::kAtomic ? self | kAtomicBit : self;
    const std::uint32_t pc = pack_pc(origin);
    for (std::size_t i = 0; i < size; ++i) {
        ByteHistory& byte = history[i];
        const void* at = static_cast<const std::byte*>(address) + i;
        const bool both_atomic = access == Access::kAtomic && (byte.writer & kAtomicBit) != 0;
        if (byte.writer != mark && !both_atomic && !is_ordered(m, byte.writer, shared)) {
            const Access other = byte.writer & kAtomicBit ? Access::kAtomic : Access::kWrite;
            report(m, at, size, access, origin, byte.writer, byte.writer_pc, other, shared);
        }
        if (access == Access::kRead) {
            if (byte.readers[0] == self || byte.readers[1] == self) continue;
            for (int slot = 0; slot < 2; ++slot) {
                if (!is_ordered(m, byte.readers[slot], shared)) continue;
                byte.readers[slot] = self;
                byte.reader_pcs[slot] = pc;
                break;
            }
            continue;
        }
        for (int slot = 0; slot < 2; ++slot) {
            if (is_ordered(m, byte.readers[slot], shared)) continue;
            report(m,
                   at,
                   size,
                   access,
                   origin,
                   byte.readers[slot],
                   byte.reader_pcs[slot],
                   Access::kRead,
                   shared);
        }
        byte.writer = mark;
        byte.writer_pc = pc;
        byte.readers[0] = byte.readers[1] = 0;
    }
}

}  // namespace cuda_emulation
