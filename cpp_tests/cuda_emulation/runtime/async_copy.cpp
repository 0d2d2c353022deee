// cp.async. A copy happens when its group is waited for, and until then its target counts as not
// initialized: that is the latest a device may be, so a kernel that waits too little is found.
#include <algorithm>
#include <cstring>

#include "cuda_pipeline.h"
#include "runtime/fault.h"
#include "runtime/memory.h"

namespace cuda_emulation {
namespace {

void perform(Machine& m, const PendingCopy& copy) {
    if (m.checks) check_access(m, copy.target, copy.size, Access::kWrite, {nullptr, copy.site});
    std::memcpy(copy.target, copy.source, copy.size - copy.zeros);
    std::memset(copy.target + copy.size - copy.zeros, 0, copy.zeros);
}

}  // namespace

void async_copy(void* shared, const void* global, std::size_t size, std::size_t zeros, Site site) {
    const Inside inside;
    Machine& m = machine();
    if ((size != 4 && size != 8 && size != 16) || zeros > size) {
        fail("asynchronous copy of a size other than 4, 8 or 16 bytes",
             "  " + std::to_string(size) + " bytes, of these " + std::to_string(zeros) +
                 " zeros, at " + describe(site) + "\n");
    }
    for (const void* address : {static_cast<const void*>(shared), global}) {
        if (reinterpret_cast<std::uintptr_t>(address) % size == 0) continue;
        fail("misaligned access",
             "  asynchronous copy of " + std::to_string(size) + " bytes at " + describe(site) +
                 "\n  address " + describe_address(address) + "\n");
    }
    if (m.checks) {
        const Origin origin{nullptr, site};
        if (size > zeros) check_access(m, global, size - zeros, Access::kRead, origin);
        check_access(m, shared, size, Access::kWrite, origin);
        forget(shared, size);
    }
    m.running->copies.push_back({static_cast<std::byte*>(shared),
                                 static_cast<const std::byte*>(global),
                                 size,
                                 zeros,
                                 m.running->open_group,
                                 site});
}

void async_commit() { ++machine().running->open_group; }

void async_wait(std::size_t pending) {
    const Inside inside;
    Machine& m = machine();
    Fiber& self = *m.running;
    auto& copies = self.copies;
    const auto first_kept = std::find_if(copies.begin(), copies.end(), [&](const PendingCopy& c) {
        return c.group + pending >= self.open_group;
    });
    for (auto copy = copies.begin(); copy != first_kept; ++copy) perform(m, *copy);
    copies.erase(copies.begin(), first_kept);
}

}  // namespace cuda_emulation
