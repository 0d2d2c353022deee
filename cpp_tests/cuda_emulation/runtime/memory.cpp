// Finds the memory behind an address: global allocations, shared variables, the dynamic shared
// memory, the stack of the thread, constants of the program.
#include "runtime/memory.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <memory>

#include "runtime/emulator.h"
#include "runtime/fault.h"
#include "runtime/symbols.h"

/// Defined by the assembly that dynamic_shared.cmake writes: every `extern __shared__` is here.
extern "C" {
extern thread_local unsigned char cuda_emulation_dynamic_shared[];
}

extern "C" const std::byte __executable_start[];
extern "C" const std::byte _end[];

namespace cuda_emulation {
namespace {

constexpr const char* kDynamicName = "cuda_emulation_dynamic_shared";
constexpr int kPoison = 0xff;  // NaN in every floating-point type

// --- Global memory ------------------------------------------------------------------------------

struct Allocation {
    std::size_t size;
    std::string name;
    std::vector<unsigned char> initialized;
    std::vector<ByteHistory> history;
};

std::map<const std::byte*, Allocation> allocations;

struct Found {
    const std::byte* base = nullptr;
    Allocation* allocation = nullptr;
};

// Most accesses hit the allocation of the one before.
Found last_found;

Found find_allocation(const std::byte* address) {
    if (last_found.base != nullptr && address >= last_found.base &&
        address < last_found.base + last_found.allocation->size) {
        return last_found;
    }
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return {};
    --after;
    if (address >= after->first + after->second.size) return {};
    return last_found = {after->first, &after->second};
}

// --- Shared memory ------------------------------------------------------------------------------

// The part of the thread-local segment that holds shared variables.
class SharedMemory {
public:
    // One entry for each byte.
    std::vector<unsigned char> initialized;
    std::vector<ByteHistory> history;

    // Finds the variables; addresses are those of the calling thread.
    void locate() {
        if (symbols_.empty()) read_symbols();
        base_ = reinterpret_cast<std::byte*>(cuda_emulation_dynamic_shared) + base_offset_;
    }

    bool contains(const std::byte* address) const {
        return address >= base_ && address < base_ + history.size();
    }
    std::size_t offset_of(const std::byte* address) const { return address - base_; }

    bool is_guard(const std::byte* address) const {
        const int owner = owners_[offset_of(address)];
        return owner >= 0 && symbols_[owner].guard;
    }

    // Bytes from `address` to the end of its variable, 0 between variables.
    std::size_t room(const std::byte* address) const {
        const int owner = owners_[offset_of(address)];
        if (owner < 0) return 0;
        const std::byte* end = base_ + symbols_[owner].offset + size_of(owner);
        return end > address ? end - address : 0;
    }

    std::string name_of(const std::byte* address) const {
        const int owner = owners_[offset_of(address)];
        if (owner < 0) return "shared memory between variables";
        const std::size_t offset = offset_of(address) - symbols_[owner].offset;
        if (owner == dynamic_) {
            return "byte " + std::to_string(offset) + " of dynamic shared memory of " +
                   std::to_string(dynamic_bytes_) + " bytes";
        }
        return "byte " + std::to_string(offset) + " of shared " + symbols_[owner].name + " of " +
               std::to_string(symbols_[owner].size) + " bytes";
    }

    void touch(const std::byte* address) {
        const int owner = owners_[offset_of(address)];
        if (touched_[owner]) return;
        touched_[owner] = true;
        touched_list_.push_back(owner);
    }

    void reset(std::size_t dynamic_bytes) {
        for (const int owner : touched_list_) {
            const std::size_t offset = symbols_[owner].offset;
            std::memset(base_ + offset, kPoison, size_of(owner));
            std::memset(initialized.data() + offset, 0, size_of(owner));
            touched_[owner] = false;
        }
        touched_list_.clear();
        dynamic_bytes_ = dynamic_bytes;
    }

private:
    std::size_t size_of(int owner) const {
        return owner == dynamic_ ? dynamic_bytes_ : symbols_[owner].size;
    }

    void read_symbols() {
        symbols_ = thread_local_symbols();
        if (symbols_.empty()) throw Fault("this program was stripped: no symbol of shared memory");
        const std::uint64_t first = symbols_.front().offset;
        std::uint64_t arena = first;
        std::uint64_t end = first;
        for (ThreadLocalSymbol& symbol : symbols_) {
            if (symbol.name == kDynamicName) arena = symbol.offset;
            end = std::max(end, symbol.offset + symbol.size);
            symbol.offset -= first;
        }
        base_offset_ = -static_cast<std::ptrdiff_t>(arena - first);
        owners_.assign(end - first, -1);
        for (std::size_t i = 0; i < symbols_.size(); ++i) {
            if (symbols_[i].name == kDynamicName) dynamic_ = static_cast<int>(i);
        }
        for (std::size_t i = 0; i < symbols_.size(); ++i) {
            // Every `extern __shared__` is another name of the same place.
            const bool alias = symbols_[i].offset == symbols_[dynamic_].offset;
            const int owner = alias ? dynamic_ : static_cast<int>(i);
            std::fill_n(owners_.begin() + symbols_[i].offset, symbols_[i].size, owner);
        }
        initialized.assign(owners_.size(), 0);
        history.assign(owners_.size(), {});
        // Thread-local variables of other parts of the program are never touched.
        touched_.assign(symbols_.size(), false);
    }

    std::vector<ThreadLocalSymbol> symbols_;  // offsets relative to base_
    std::vector<int> owners_;                 // index into symbols_ for each byte, -1 for none
    std::vector<bool> touched_;
    std::vector<int> touched_list_;
    std::byte* base_ = nullptr;
    std::ptrdiff_t base_offset_ = 0;
    int dynamic_ = 0;
    std::size_t dynamic_bytes_ = 0;
};

SharedMemory shared_memory;

// --- Faults -------------------------------------------------------------------------------------

std::string describe_access(const void* address,
                            std::size_t size,
                            Access access,
                            const Origin& origin) {
    const char* const words[] = {"read", "write", "atomic"};
    return "  " + std::string(words[static_cast<int>(access)]) + " of " + std::to_string(size) +
           " bytes at " + (origin.pc ? describe_code(origin.pc) : describe(origin.site)) +
           "\n  address " + describe_address(address) + "\n";
}

void check_stack(
    Machine& m, const std::byte* address, std::size_t size, Access access, const Origin& origin) {
    const std::size_t owner = static_cast<std::size_t>(address - m.stacks) / kStackBytes;
    if (owner == m.running->linear) return;
    fail("access to a local variable of another thread",
         describe_access(address, size, access, origin) + "  it belongs to " +
             describe_thread(m, static_cast<std::uint32_t>(owner)) + "\n");
}

void check_elsewhere(const std::byte* address,
                     std::size_t size,
                     Access access,
                     const Origin& origin) {
    // Constants and variables of the program; string literals.
    if (address >= __executable_start && address < _end) return;
    if (access == Access::kRead && in_loaded_image(address)) return;
    fail("access out of bounds", describe_access(address, size, access, origin));
}

// The same for global and shared memory, once the bytes are known to exist.
void check_bytes(Machine& m,
                 const std::byte* address,
                 std::size_t size,
                 Access access,
                 bool shared,
                 unsigned char* initialized,
                 ByteHistory* history,
                 const Origin& origin) {
    if (access != Access::kWrite) {
        const void* unset = std::memchr(initialized, 0, size);
        if (unset != nullptr) {
            const auto* at = address + (static_cast<const unsigned char*>(unset) - initialized);
            fail(shared ? "read of uninitialized shared memory"
                        : "read of uninitialized global memory",
                 describe_access(at, size, access, origin));
        }
    } else {
        std::memset(initialized, 1, size);
    }
    record_access(m, history, address, size, access, shared, origin);
}

}  // namespace

void check_access(
    Machine& m, const void* pointer, std::size_t size, Access access, const Origin& origin) {
    const auto* address = static_cast<const std::byte*>(pointer);
    if (address >= m.stacks && address < m.stacks + kMaxThreads * kStackBytes) {
        return check_stack(m, address, size, access, origin);
    }
    ++counters().accesses;
    if (shared_memory.contains(address)) {
        if (shared_memory.is_guard(address)) return;
        if (shared_memory.room(address) < size) {
            fail("shared memory access out of bounds",
                 describe_access(address, size, access, origin));
        }
        shared_memory.touch(address);
        const std::size_t at = shared_memory.offset_of(address);
        return check_bytes(m,
                           address,
                           size,
                           access,
                           true,
                           shared_memory.initialized.data() + at,
                           shared_memory.history.data() + at,
                           origin);
    }
    const Found found = find_allocation(address);
    if (found.allocation == nullptr) return check_elsewhere(address, size, access, origin);
    const std::size_t at = address - found.base;
    if (size > found.allocation->size - at) {
        fail("global memory access out of bounds", describe_access(address, size, access, origin));
    }
    check_bytes(m,
                address,
                size,
                access,
                false,
                found.allocation->initialized.data() + at,
                found.allocation->history.data() + at,
                origin);
}

void check_shared_row(Machine& m, const void* row, std::size_t size, Site site) {
    if (reinterpret_cast<std::uintptr_t>(row) % size != 0) {
        fail("misaligned access",
             "  a row of " + std::to_string(size) + " bytes at " + describe(site) + "\n  address " +
                 describe_address(row) + "\n");
    }
    if (!m.checks) return;
    if (!shared_memory.contains(static_cast<const std::byte*>(row))) {
        fail("a row outside of shared memory",
             "  at " + describe(site) + "\n  address " + describe_address(row) + "\n");
    }
    check_access(m, row, size, Access::kRead, {.pc = nullptr, .site = site});
}

void reset_shared_memory(std::size_t dynamic_bytes) {
    shared_memory.locate();
    shared_memory.reset(dynamic_bytes);
}

void forget(const void* address, std::size_t size) {
    const auto* at = static_cast<const std::byte*>(address);
    std::memset(shared_memory.initialized.data() + shared_memory.offset_of(at), 0, size);
}

void register_memory(const std::byte* base, std::size_t size, const std::string& name) {
    allocations[base] = {
        size, name, std::vector<unsigned char>(size, 0), std::vector<ByteHistory>(size)};
}

void unregister_memory(const std::byte* base) {
    allocations.erase(base);
    last_found = {};
}

void mark_initialized(const std::byte* address, std::size_t size) {
    const Found found = find_allocation(address);
    if (found.allocation == nullptr) return;
    std::fill_n(found.allocation->initialized.begin() + (address - found.base), size, 1);
}

std::size_t first_uninitialized(const std::byte* address, std::size_t size) {
    const Found found = find_allocation(address);
    if (found.allocation == nullptr) return size;
    const auto begin = found.allocation->initialized.begin() + (address - found.base);
    return std::find(begin, begin + size, 0) - begin;
}

std::string describe_address(const void* pointer) {
    const auto* address = static_cast<const std::byte*>(pointer);
    char text[32];
    std::snprintf(text, sizeof(text), "%p", pointer);
    std::string described = text;
    if (shared_memory.contains(address)) return described + ", " + shared_memory.name_of(address);
    auto after = allocations.upper_bound(address);
    if (after != allocations.begin()) {
        const auto& [base, allocation] = *std::prev(after);
        const std::size_t offset = address - base;
        if (offset < allocation.size) {
            return described + ", byte " + std::to_string(offset) + " of " + allocation.name +
                   " of " + std::to_string(allocation.size) + " bytes";
        }
        if (offset < allocation.size + 65536) {
            return described + ", " + std::to_string(offset - allocation.size) +
                   " bytes after the end of " + allocation.name + " of " +
                   std::to_string(allocation.size) + " bytes";
        }
    }
    if (after != allocations.end() && after->first - address < 65536) {
        return described + ", " + std::to_string(after->first - address) +
               " bytes before the start of " + after->second.name;
    }
    return described + ", no memory of the device";
}

}  // namespace cuda_emulation
