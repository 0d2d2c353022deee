/// Where the heads of a token lie in packed and in split form; for the CPU and the CUDA kernels.
#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "kernels/rotary.h"

namespace megacore {

/// One head in both forms.
template <class T>
struct RotaryHead {
    T* packed;
    T* split;
    bool turned;  ///< Whether it is rotated; the others are copied.
};

template <class T>
struct RotaryHeads {
    T* packed;
    T* q;
    T* k;  ///< Null without k and v.
    T* v;
    std::int64_t num_groups;
    std::int64_t ratio;  ///< Query heads of a group.
    std::int64_t head_size;

    static RotaryHeads of(const Rotary& args) {
        return {args.packed.as<T>(),
                args.q.as<T>(),
                args.k.as<T>(),
                args.v.as<T>(),
                args.q.sizes[1],
                args.q.sizes[2],
                args.q.sizes[3]};
    }

    MEGACORE_HOST_DEVICE std::int64_t per_group() const { return ratio + (k == nullptr ? 0 : 2); }
    /// Heads of one token.
    MEGACORE_HOST_DEVICE std::int64_t count() const { return num_groups * per_group(); }

    /// Head `number` of `token`, counted as in packed form.
    MEGACORE_HOST_DEVICE RotaryHead<T> at(std::int64_t token, std::int64_t number) const {
        const std::int64_t group = token * num_groups + number / per_group();
        const std::int64_t within = number % per_group();
        T* const here = packed + (token * count() + number) * head_size;
        if (within < ratio) return {here, q + (group * ratio + within) * head_size, true};
        if (within == ratio) return {here, k + group * head_size, true};
        return {here, v + group * head_size, false};
    }
};

}  // namespace megacore
