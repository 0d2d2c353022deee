/// Where a thread is, and how threads meet: barriers, shuffles, votes, warp reductions.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include "cuda_emulation/vector_types.h"

namespace cuda_emulation {

/// Source line of a call, filled in by default arguments at the caller.
struct Site {
    const char* file = nullptr;
    int line = 0;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// A running thread's own indices never change, which lets g++ keep them.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) int lane_index();

enum class BlockReduction { kNone, kCount, kAnd, kOr };
/// __syncthreads and its relatives; `value` is the predicate.
int block_barrier(BlockReduction reduction, int value, Site site);

void warp_barrier(unsigned mask, Site site);

enum class Shuffle { kIndex, kUp, kDown, kXor };
std::uint64_t shuffle(
    Shuffle kind, unsigned mask, std::uint64_t value, int operand, int width, Site site);

/// Lanes of `mask` whose value is not 0.
unsigned ballot(unsigned mask, bool predicate, Site site);
/// Lanes of `mask` with the caller's value.
unsigned match(unsigned mask, std::uint64_t value, Site site);

enum class Reduction { kAdd, kMin, kMax, kAnd, kOr, kXor };
std::int64_t warp_reduce(Reduction kind, unsigned mask, std::int64_t value, Site site);

/// Lets another thread run, as time passing would.
void pass_time();
/// Every access before it is ordered before every access after it, for other blocks too.
void fence();
/// A fault found by the kernel itself (__trap, a failed assert). Does not return.
[[noreturn]] void trap(Site site);

template <class T>
__forceinline__ std::uint64_t to_bits(T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    if constexpr (sizeof(T) == 8) {
        return std::bit_cast<std::uint64_t>(value);
    } else if constexpr (sizeof(T) == 4) {
        return std::bit_cast<std::uint32_t>(value);
    } else if constexpr (sizeof(T) == 2) {
        return std::bit_cast<std::uint16_t>(value);
    } else {
        return std::bit_cast<std::uint8_t>(value);
    }
}

template <class T>
__forceinline__ T from_bits(std::uint64_t bits) {
    if constexpr (sizeof(T) == 8) {
        return std::bit_cast<T>(bits);
    } else if constexpr (sizeof(T) == 4) {
        return std::bit_cast<T>(static_cast<std::uint32_t>(bits));
    } else if constexpr (sizeof(T) == 2) {
        return std::bit_cast<T>(static_cast<std::uint16_t>(bits));
    } else {
        return std::bit_cast<T>(static_cast<std::uint8_t>(bits));
    }
}

}  // namespace cuda_emulation

// CUDA's names are the API; they live in the global namespace.
#define threadIdx (::cuda_emulation::thread_index())
#define blockIdx (::cuda_emulation::block_index())
// No macros, because cudaLaunchConfig_t has members of these names. The runtime writes them.
extern const dim3 blockDim;
extern const dim3 gridDim;
inline constexpr int warpSize = 32;

#define CUDA_EMULATION_SITE \
    ::cuda_emulation::Site site = ::cuda_emulation::Site::here(__builtin_FILE(), __builtin_LINE())

// --- Block barriers -----------------------------------------------------------------------------

__forceinline__ void __syncthreads(CUDA_EMULATION_SITE) {
    cuda_emulation::block_barrier(cuda_emulation::BlockReduction::kNone, 0, site);
}
__forceinline__ int __syncthreads_count(int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::block_barrier(cuda_emulation::BlockReduction::kCount, predicate, site);
}
__forceinline__ int __syncthreads_and(int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::block_barrier(cuda_emulation::BlockReduction::kAnd, predicate, site);
}
__forceinline__ int __syncthreads_or(int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::block_barrier(cuda_emulation::BlockReduction::kOr, predicate, site);
}

// --- Warp ---------------------------------------------------------------------------------------

__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, CUDA_EMULATION_SITE) {
    cuda_emulation::warp_barrier(mask, site);
}

/// Only the caller is certain to be converged with itself.
__forceinline__ unsigned __activemask() { return 1u << cuda_emulation::lane_index(); }

template <class T>
__forceinline__ T
__shfl_sync(unsigned mask, T value, int source, int width = 32, CUDA_EMULATION_SITE) {
    return cuda_emulation::from_bits<T>(cuda_emulation::shuffle(cuda_emulation::Shuffle::kIndex,
                                                                mask,
                                                                cuda_emulation::to_bits(value),
                                                                source,
                                                                width,
                                                                site));
}
template <class T>
__forceinline__ T
__shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATION_SITE) {
    return cuda_emulation::from_bits<T>(cuda_emulation::shuffle(cuda_emulation::Shuffle::kUp,
                                                                mask,
                                                                cuda_emulation::to_bits(value),
                                                                static_cast<int>(delta),
                                                                width,
                                                                site));
}
template <class T>
__forceinline__ T
__shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, CUDA_EMULATION_SITE) {
    return cuda_emulation::from_bits<T>(cuda_emulation::shuffle(cuda_emulation::Shuffle::kDown,
                                                                mask,
                                                                cuda_emulation::to_bits(value),
                                                                static_cast<int>(delta),
                                                                width,
                                                                site));
}
template <class T>
__forceinline__ T
__shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, CUDA_EMULATION_SITE) {
    return cuda_emulation::from_bits<T>(cuda_emulation::shuffle(cuda_emulation::Shuffle::kXor,
                                                                mask,
                                                                cuda_emulation::to_bits(value),
                                                                lane_mask,
                                                                width,
                                                                site));
}

__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::ballot(mask, predicate != 0, site);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::ballot(mask, predicate != 0, site) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, CUDA_EMULATION_SITE) {
    return cuda_emulation::ballot(mask, predicate == 0, site) == 0;
}

template <class T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value, CUDA_EMULATION_SITE) {
    return cuda_emulation::match(mask, cuda_emulation::to_bits(value), site);
}
template <class T>
__forceinline__ unsigned __match_all_sync(unsigned mask,
                                          T value,
                                          int* all_equal,
                                          CUDA_EMULATION_SITE) {
    const unsigned equal = cuda_emulation::match(mask, cuda_emulation::to_bits(value), site);
    *all_equal = equal == mask;
    return equal == mask ? mask : 0u;
}

#define CUDA_EMULATION_REDUCE(name, kind, T)                                                  \
    __forceinline__ T name(unsigned mask, T value, CUDA_EMULATION_SITE) {                     \
        return static_cast<T>(                                                                \
            cuda_emulation::warp_reduce(cuda_emulation::Reduction::kind, mask, value, site)); \
    }
CUDA_EMULATION_REDUCE(__reduce_add_sync, kAdd, int)
CUDA_EMULATION_REDUCE(__reduce_add_sync, kAdd, unsigned)
CUDA_EMULATION_REDUCE(__reduce_min_sync, kMin, int)
CUDA_EMULATION_REDUCE(__reduce_min_sync, kMin, unsigned)
CUDA_EMULATION_REDUCE(__reduce_max_sync, kMax, int)
CUDA_EMULATION_REDUCE(__reduce_max_sync, kMax, unsigned)
CUDA_EMULATION_REDUCE(__reduce_and_sync, kAnd, unsigned)
CUDA_EMULATION_REDUCE(__reduce_or_sync, kOr, unsigned)
CUDA_EMULATION_REDUCE(__reduce_xor_sync, kXor, unsigned)
#undef CUDA_EMULATION_REDUCE

// --- Fences and time ----------------------------------------------------------------------------

__forceinline__ void __threadfence() { cuda_emulation::fence(); }
__forceinline__ void __threadfence_block() { cuda_emulation::fence(); }
__forceinline__ void __threadfence_system() { cuda_emulation::fence(); }
__forceinline__ void __nanosleep(unsigned) { cuda_emulation::pass_time(); }
[[noreturn]] __forceinline__ void __trap(CUDA_EMULATION_SITE) { cuda_emulation::trap(site); }
