/// Compiling one function for several instruction sets, the best of which is chosen at load time.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__gnu_linux__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define MEGACORE_MULTIVERSION __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MEGACORE_MULTIVERSION
#endif
