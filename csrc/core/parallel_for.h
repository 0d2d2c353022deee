/// The one parallel loop of all CPU kernels.
///
/// megacore owns no thread pool. Whoever loads the kernels hands them a loop: the torch bindings
/// give at::parallel_for, so kernels share torch's threads and obey torch.set_num_threads.
/// Without one, loops run in the calling thread.
#pragma once

#include <cstdint>
#include <type_traits>

namespace megacore {

/// Non-owning reference to a callable of [begin, end); valid while the callable lives.
class RangeBody {
public:
    template <class Body>
        requires(!std::is_same_v<std::remove_cvref_t<Body>, RangeBody>)
    RangeBody(const Body& body)  // NOLINT: implicit on purpose, call sites pass lambdas
        : context_(&body), call_([](const void* context, std::int64_t begin, std::int64_t end) {
              (*static_cast<const Body*>(context))(begin, end);
          }) {}

    void operator()(std::int64_t begin, std::int64_t end) const { call_(context_, begin, end); }

private:
    const void* context_;
    void (*call_)(const void*, std::int64_t, std::int64_t);
};

/// Runs `body` on disjoint pieces that cover [begin, end), each of at least `grain` items when
/// there are that many. How the range is cut depends on the number of threads, so a body must not
/// let its result depend on the cut.
using ParallelFor = void (*)(std::int64_t begin,
                             std::int64_t end,
                             std::int64_t grain,
                             RangeBody body);

/// Installs the loop. Called once, when a binding is loaded, before any kernel runs.
void set_parallel_for(ParallelFor loop);

/// Runs `body` through the installed loop; returns at once when the range is empty.
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, RangeBody body);

}  // namespace megacore
