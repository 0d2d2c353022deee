/// Exponential and the functions made of it, on Vec. Included by files compiled per instruction
/// set.
#pragma once

#include "kernels/simd.h"

namespace megacore::cpu::MEGACORE_ISA {

/// e^x within 2 units in the last place; 0 below -87.33, and above 88.37 what it is there.
inline Vec exp(Vec x) {
    const Vec lowest = Vec::broadcast(-87.33f);
    const Vec clamped = Vec::min(Vec::broadcast(88.37f), Vec::max(lowest, x));
    // Adding 1.5 * 2^23 rounds to an integer n, which is then in the low bits of the sum.
    const Vec magic = Vec::broadcast(0x1.8p23f);
    const Vec shifted = Vec::fma(clamped, Vec::broadcast(0x1.715476p0f), magic);
    const Vec n = shifted - magic;
    // r = x - n log 2, in [-0.35, 0.35]; log 2 in two parts, the first with zeros at its end.
    Vec r = Vec::fma(n, Vec::broadcast(-0x1.62e4p-1f), clamped);
    r = Vec::fma(n, Vec::broadcast(-0x1.7f7d1cp-20f), r);
    Vec series = Vec::broadcast(1.0f / 5040.0f);
    for (const float factor : {1.0f / 720.0f, 1.0f / 120.0f, 1.0f / 24.0f, 1.0f / 6.0f, 0.5f}) {
        series = Vec::fma(series, r, Vec::broadcast(factor));
    }
    const Vec power = Vec::fma(series * r, r, r) + Vec::broadcast(1.0f);
    return Vec::if_less(x, lowest, Vec::zero(), power * Vec::power_of_two(shifted));
}

/// Distribution function of the standard normal distribution, and its density.
struct Normal {
    Vec below;    ///< Probability of a value below x.
    Vec density;  ///< e^(-x^2 / 2) / sqrt(2 pi)
};

/// The probability beyond t = |x| is e^(-t^2 / 2) g(t), with g smooth: a polynomial of degree 8 in
/// u = 1 / (1 + 0.26 t), times u, fits it to a relative 2.5e-8 for t <= 14 (weighted least squares
/// on 400 Chebyshev nodes, reweighted towards the largest relative error).
inline Normal normal(Vec x) {
    constexpr float kFit[] = {0.030504942f,
                              -0.1528291f,
                              0.25149184f,
                              -0.1509496f,
                              0.16094829f,
                              0.051027503f,
                              0.1030303f,
                              0.10301674f,
                              0.10375906f};
    const Vec zero = Vec::zero();
    const Vec one = Vec::broadcast(1.0f);
    const Vec t = Vec::max(x, zero - x);
    const Vec gauss = exp(x * x * Vec::broadcast(-0.5f));
    const Vec u = one / Vec::fma(t, Vec::broadcast(0.26f), one);
    Vec fit = Vec::broadcast(kFit[0]);
    for (int i = 1; i < 9; ++i) fit = Vec::fma(fit, u, Vec::broadcast(kFit[i]));
    const Vec beyond = fit * u * gauss;
    return {.below = Vec::if_less(x, zero, beyond, one - beyond),
            .density = gauss * Vec::broadcast(0.3989422804f)};
}

}  // namespace megacore::cpu::MEGACORE_ISA
