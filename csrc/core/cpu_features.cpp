#include "core/cpu_features.h"

#include <atomic>

#include "core/check.h"

namespace megacore {
namespace {

Isa detect() {
#if defined(__x86_64__)
    // The compiler's run-time support also asks the operating system (XGETBV) whether it saves
    // the wide registers.
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        return Isa::kAvx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
        return Isa::kAvx2;
    }
#endif
    return Isa::kBaseline;
}

std::atomic<Isa>& active() {
    static std::atomic<Isa> isa{detected_isa()};
    return isa;
}

}  // namespace

Isa detected_isa() {
    static const Isa isa = detect();
    return isa;
}

Isa active_isa() { return active().load(std::memory_order_relaxed); }

void use_isa(Isa isa) {
    MEGACORE_CHECK(isa <= detected_isa(),
                   "this CPU runs up to ",
                   name_of(detected_isa()),
                   ", asked for ",
                   name_of(isa));
    active().store(isa, std::memory_order_relaxed);
}

const char* name_of(Isa isa) {
    switch (isa) {
        case Isa::kBaseline:
            return "baseline";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kAvx512:
            return "avx512";
    }
    return "unknown";
}

std::vector<std::string> cpu_features() {
    std::vector<std::string> found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found.emplace_back("avx2");
    if (__builtin_cpu_supports("fma")) found.emplace_back("fma");
    if (__builtin_cpu_supports("f16c")) found.emplace_back("f16c");
    if (__builtin_cpu_supports("avx512f")) found.emplace_back("avx512f");
    if (__builtin_cpu_supports("avx512bw")) found.emplace_back("avx512bw");
    if (__builtin_cpu_supports("avx512vnni")) found.emplace_back("avx512_vnni");
    if (__builtin_cpu_supports("avx512bf16")) found.emplace_back("avx512_bf16");
    if (__builtin_cpu_supports("avx512fp16")) found.emplace_back("avx512_fp16");
#endif
    return found;
}

}  // namespace megacore
