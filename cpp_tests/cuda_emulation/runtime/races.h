/// Who accessed what, and whether something orders two accesses.
///
/// A segment is what a thread does between two barriers. Two accesses of different threads are
/// ordered when a __syncthreads lies between them, or a __syncwarp of a mask that has both lanes.
/// Shuffles and votes order nothing, as the programming guide says. Accesses of different blocks
/// are ordered only by atomics: a block that performs one on the same variable after another block
/// did is taken to be ordered after it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "runtime/machine.h"

namespace cuda_emulation {

enum class Access : std::uint8_t { kRead, kWrite, kAtomic };

/// Where an access is in the source: an instruction, or what the call of an intrinsic says.
struct Origin {
    const void* pc = nullptr;
    Site site;
};

/// The history of one byte. Segments count from 1; the highest bit marks an atomic.
struct ByteHistory {
    std::uint32_t writer = 0;
    std::uint32_t writer_pc = 0;
    std::uint32_t readers[2] = {0, 0};
    std::uint32_t reader_pcs[2] = {0, 0};
};

void races_begin_launch();
void races_begin_block(Machine& m);
void races_order_lanes(Machine& m, std::size_t warp, unsigned lanes);
/// An atomic on `address`: orders this block after all that did the same before.
void races_order_blocks(Machine& m, const void* address);

/// Records the access of `size` bytes; fails when another access of any of them is not ordered.
void record_access(Machine& m,
                   ByteHistory* history,
                   const void* address,
                   std::size_t size,
                   Access access,
                   bool shared,
                   const Origin& origin);

}  // namespace cuda_emulation
