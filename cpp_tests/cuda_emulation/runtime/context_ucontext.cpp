// Fibers by POSIX ucontext: every switch is a system call, which saves the signal mask.
#include "runtime/context.h"

#include <ucontext.h>

#include <deque>

namespace cuda_emulation {
namespace {

// A Context owns its ucontext_t for good: the fibers of a process are a fixed pool.
ucontext_t& own(Context& context) {
    static std::deque<ucontext_t> storage;
    if (context.handle == nullptr) context.handle = &storage.emplace_back();
    return *static_cast<ucontext_t*>(context.handle);
}

}  // namespace

void make_context(Context& context, std::byte* stack, std::size_t size, void (*entry)()) {
    ucontext_t& created = own(context);
    getcontext(&created);
    created.uc_stack.ss_sp = stack;
    created.uc_stack.ss_size = size;
    created.uc_link = nullptr;
    makecontext(&created, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&own(from), &own(to)); }

const char* context_backend() { return "ucontext"; }

}  // namespace cuda_emulation
