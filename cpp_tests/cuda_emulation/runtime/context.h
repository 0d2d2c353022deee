/// The one thing fibers need from the machine: leaving one stack for another.
///
/// Two implementations, chosen by CMake: context_boost.cpp (Boost.Context, some nanoseconds a
/// switch) and context_ucontext.cpp (POSIX, a system call a switch, for machines without Boost).
#pragma once

#include <cstddef>

namespace cuda_emulation {

/// A suspended flow of control. Valid while its stack is.
struct Context {
    void* handle = nullptr;
};

/// Prepares `context` so that the first switch to it calls entry() on the given stack. entry never
/// returns. `stack` is the lowest address; both it and `size` are multiples of 64.
void make_context(Context& context, std::byte* stack, std::size_t size, void (*entry)());

/// Suspends the caller in `from` and continues `to`; returns when somebody switches to `from`.
void switch_context(Context& from, Context& to);

/// Name of the implementation, for reports.
const char* context_backend();

}  // namespace cuda_emulation
