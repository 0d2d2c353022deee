// Where g++ calls at every load and store of an emulated source.
//
// The sources are compiled with -fsanitize=thread,alignment,bounds,object-size, but the program is
// not linked with the sanitizers' libraries: the functions they would provide are here. Of the ways
// to see the accesses of unchanged source this is the most complete one:
//   - thread instruments every access that another thread could see, globals, shared variables and
//     thread-local ones alike, after optimization, with address, size and return address. The
//     address sanitizer leaves out constant indices into static arrays and the second access to one
//     place, which is right for bounds and useless for races.
//   - alignment and bounds know the types, so a float4 read from an address of 4 is found although
//     it may become four loads, and an index past a local array although no address shows it.
// Wrapping types or pointers would need changed source, and a compiler plugin its own tool chain.
//
// Outside of a kernel all of them do nothing.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "runtime/fault.h"
#include "runtime/memory.h"

namespace {

using cuda_emulation::Access;
using cuda_emulation::checked_machine;

__attribute__((always_inline)) inline void access(const void* address,
                                                  std::size_t size,
                                                  Access kind,
                                                  const void* pc) {
    if (auto* m = checked_machine()) {
        const cuda_emulation::Inside inside;
        cuda_emulation::check_access(*m, address, size, kind, {.pc = pc, .site = {}});
    }
}

}  // namespace

// --- Loads and stores ---------------------------------------------------------------------------

#define CUDA_EMULATION_ACCESS(size)                                         \
    void __tsan_read##size(void* address) {                                 \
        access(address, size, Access::kRead, __builtin_return_address(0));  \
    }                                                                       \
    void __tsan_write##size(void* address) {                                \
        access(address, size, Access::kWrite, __builtin_return_address(0)); \
    }                                                                       \
    void __tsan_volatile_read##size(void* address) {                        \
        access(address, size, Access::kRead, __builtin_return_address(0));  \
    }                                                                       \
    void __tsan_volatile_write##size(void* address) {                       \
        access(address, size, Access::kWrite, __builtin_return_address(0)); \
    }                                                                       \
    void __tsan_unaligned_read##size(void* address) {                       \
        access(address, size, Access::kRead, __builtin_return_address(0));  \
    }                                                                       \
    void __tsan_unaligned_write##size(void* address) {                      \
        access(address, size, Access::kWrite, __builtin_return_address(0)); \
    }

extern "C" {

CUDA_EMULATION_ACCESS(1)
CUDA_EMULATION_ACCESS(2)
CUDA_EMULATION_ACCESS(4)
CUDA_EMULATION_ACCESS(8)
CUDA_EMULATION_ACCESS(16)

void __tsan_read_range(void* address, std::size_t size) {
    access(address, size, Access::kRead, __builtin_return_address(0));
}
void __tsan_write_range(void* address, std::size_t size) {
    access(address, size, Access::kWrite, __builtin_return_address(0));
}
void __tsan_vptr_update(void** address, void*) {
    access(address, sizeof(void*), Access::kWrite, __builtin_return_address(0));
}
void __tsan_vptr_read(void** address) {
    access(address, sizeof(void*), Access::kRead, __builtin_return_address(0));
}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}

// --- Library functions that touch memory (renamed by keywords.h) ---------------------------------

void* cuda_emulation_memcpy(void* target, const void* source, std::size_t size) {
    if (size > 0) {
        access(source, size, Access::kRead, __builtin_return_address(0));
        access(target, size, Access::kWrite, __builtin_return_address(0));
    }
    return std::memcpy(target, source, size);
}
void* cuda_emulation_memmove(void* target, const void* source, std::size_t size) {
    if (size > 0) {
        access(source, size, Access::kRead, __builtin_return_address(0));
        access(target, size, Access::kWrite, __builtin_return_address(0));
    }
    return std::memmove(target, source, size);
}
void* cuda_emulation_memset(void* target, int value, std::size_t size) {
    if (size > 0) access(target, size, Access::kWrite, __builtin_return_address(0));
    return std::memset(target, value, size);
}

}  // extern "C"

// --- Atomics ------------------------------------------------------------------------------------

namespace cuda_emulation {

void before_atomic(const void* address, unsigned size) {
    const Inside inside;
    Machine& m = machine();
    if (m.running == nullptr) return;
    if (random_below(m, 4) == 0) pass_time();
    if (!m.checks) return;
    check_access(
        m, address, size, Access::kAtomic, {.pc = __builtin_return_address(0), .site = {}});
    races_order_blocks(m, address);
}

void fence() {
    const Inside inside;
    if (machine().running != nullptr && random_below(machine(), 4) == 0) pass_time();
}

}  // namespace cuda_emulation

// std::atomic and the __atomic functions. One operating-system thread runs all fibers.
#define CUDA_EMULATION_ATOMIC_FETCH(bits, name, expression)                                 \
    std::uint##bits##_t __tsan_atomic##bits##_##name(                                       \
        volatile std::uint##bits##_t* address, std::uint##bits##_t value, int) {            \
        cuda_emulation::before_atomic(const_cast<std::uint##bits##_t*>(address), bits / 8); \
        const std::uint##bits##_t old = *address;                                           \
        *address = static_cast<std::uint##bits##_t>(expression);                            \
        return old;                                                                         \
    }

#define CUDA_EMULATION_ATOMIC_SIZE(bits)                                                        \
    std::uint##bits##_t __tsan_atomic##bits##_load(const volatile std::uint##bits##_t* address, \
                                                   int) {                                       \
        cuda_emulation::before_atomic(const_cast<std::uint##bits##_t*>(address), bits / 8);     \
        return *address;                                                                        \
    }                                                                                           \
    void __tsan_atomic##bits##_store(                                                           \
        volatile std::uint##bits##_t* address, std::uint##bits##_t value, int) {                \
        cuda_emulation::before_atomic(const_cast<std::uint##bits##_t*>(address), bits / 8);     \
        *address = value;                                                                       \
    }                                                                                           \
    CUDA_EMULATION_ATOMIC_FETCH(bits, exchange, value)                                          \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_add, old + value)                                   \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_sub, old - value)                                   \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_and, old& value)                                    \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_or, old | value)                                    \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_xor, old ^ value)                                   \
    CUDA_EMULATION_ATOMIC_FETCH(bits, fetch_nand, ~(old & value))                               \
    int __tsan_atomic##bits##_compare_exchange_strong(volatile std::uint##bits##_t* address,    \
                                                      std::uint##bits##_t* expected,            \
                                                      std::uint##bits##_t desired,              \
                                                      int,                                      \
                                                      int) {                                    \
        cuda_emulation::before_atomic(const_cast<std::uint##bits##_t*>(address), bits / 8);     \
        if (*address == *expected) {                                                            \
            *address = desired;                                                                 \
            return 1;                                                                           \
        }                                                                                       \
        *expected = *address;                                                                   \
        return 0;                                                                               \
    }                                                                                           \
    int __tsan_atomic##bits##_compare_exchange_weak(volatile std::uint##bits##_t* address,      \
                                                    std::uint##bits##_t* expected,              \
                                                    std::uint##bits##_t desired,                \
                                                    int success,                                \
                                                    int failure) {                              \
        return __tsan_atomic##bits##_compare_exchange_strong(                                   \
            address, expected, desired, success, failure);                                      \
    }

extern "C" {
CUDA_EMULATION_ATOMIC_SIZE(8)
CUDA_EMULATION_ATOMIC_SIZE(16)
CUDA_EMULATION_ATOMIC_SIZE(32)
CUDA_EMULATION_ATOMIC_SIZE(64)
void __tsan_atomic_thread_fence(int) { cuda_emulation::fence(); }
void __tsan_atomic_signal_fence(int) {}
}

// --- Types: alignment and bounds ----------------------------------------------------------------

namespace {

struct SourceLocation {
    const char* file;
    std::uint32_t line;
    std::uint32_t column;
};

struct TypeDescriptor {
    std::uint16_t kind;
    std::uint16_t info;
    char name[1];
};

struct TypeMismatch {
    SourceLocation location;
    const TypeDescriptor* type;
    unsigned char log_alignment;
    unsigned char kind;
};

struct OutOfBounds {
    SourceLocation location;
    const TypeDescriptor* array;
    const TypeDescriptor* index;
};

// On the host there is no fiber to leave, and these functions must not throw.
[[noreturn]] void report(const std::string& what, const std::string& details) {
    if (cuda_emulation::machine().running == nullptr) {
        std::fprintf(stderr, "%s\n%s", what.c_str(), details.c_str());
        std::abort();
    }
    cuda_emulation::fail(what, details);
}

std::string describe(const SourceLocation& at) {
    return cuda_emulation::describe({at.file, static_cast<int>(at.line)});
}

}  // namespace

extern "C" {

void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, const void* address) {
    const cuda_emulation::Inside inside;
    const std::size_t alignment = std::size_t{1} << data->log_alignment;
    const bool misaligned = reinterpret_cast<std::uintptr_t>(address) % alignment != 0;
    std::string details = "  " + std::string(data->type->name) + " at " + describe(data->location);
    if (misaligned) details += ", which needs an alignment of " + std::to_string(alignment);
    report(misaligned ? "misaligned access" : "access past the end of a variable",
           details + "\n  address " + cuda_emulation::describe_address(address) + "\n");
}

void __ubsan_handle_out_of_bounds(OutOfBounds* data, const void* index) {
    const cuda_emulation::Inside inside;
    // Values of up to 64 bits are passed in place of the pointer.
    report("index out of bounds",
           "  index " + std::to_string(reinterpret_cast<std::intptr_t>(index)) + " of " +
               data->array->name + " at " + describe(data->location) + "\n");
}

}  // extern "C"
