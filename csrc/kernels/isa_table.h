/// Choosing among the versions of a kernel that were compiled per instruction set.
#pragma once

#include "core/cpu_features.h"

/// For `Table`, a struct of function pointers that every <op>_cpu.cpp defines as `name` in its
/// namespace: declares these and defines `const Table& active_##name()`, the version for the
/// instruction set in use. MEGACORE_X86_ISAS is set by CMake where those versions are compiled.
#if MEGACORE_X86_ISAS
#define MEGACORE_ISA_TABLE(Table, name)   \
    namespace baseline {                  \
    extern const Table name;              \
    }                                     \
    namespace avx2 {                      \
    extern const Table name;              \
    }                                     \
    namespace avx512 {                    \
    extern const Table name;              \
    }                                     \
    inline const Table& active_##name() { \
        switch (active_isa()) {           \
            case Isa::kAvx512:            \
                return avx512::name;      \
            case Isa::kAvx2:              \
                return avx2::name;        \
            case Isa::kBaseline:          \
                break;                    \
        }                                 \
        return baseline::name;            \
    }
#else
#define MEGACORE_ISA_TABLE(Table, name) \
    namespace baseline {                \
    extern const Table name;            \
    }                                   \
    inline const Table& active_##name() { return baseline::name; }
#endif
