// Fibers by the assembly of Boost.Context.
#include <boost/context/detail/fcontext.hpp>

#include "runtime/context.h"

namespace cuda_emulation {
namespace {

namespace boost_context = boost::context::detail;

// What was left behind arrives with the switch: `data` is the Context it belongs to.
void keep(boost_context::transfer_t arrived) {
    static_cast<Context*>(arrived.data)->handle = arrived.fctx;
}

void (*entry_function)() = nullptr;  // all fibers of a process start at the same function

void start(boost_context::transfer_t arrived) {
    keep(arrived);
    entry_function();
}

}  // namespace

void make_context(Context& context, std::byte* stack, std::size_t size, void (*entry)()) {
    entry_function = entry;
    context.handle = boost_context::make_fcontext(stack + size, size, start);
}

void switch_context(Context& from, Context& to) {
    keep(boost_context::jump_fcontext(to.handle, &from));
}

const char* context_backend() { return "Boost.Context"; }

}  // namespace cuda_emulation
