/// Conversion to the 8-bit formats, with a scale for a tensor or for every block of it.
///
/// Per tensor:  out = to_fp8(x * scale), out_t = its transpose, amax = max(amax, |x|)
/// Per block:   k = fp8_block_exponent(largest |x| of the block), inverse = 2^-k
///              out = to_fp8(x * 2^k)
///
/// x [M, K] float32, bfloat16 or float16. Results saturate; NaN stays NaN and does not count for
/// amax. The product with the scale is float32. amax is added to, so that it may collect over
/// several tensors; it is an exact maximum and depends on no order. The format is the dtype of out.
///
/// Moves 3 bytes per element of a 16-bit x, 4 with the transpose; bound by memory. Determinism:
/// bitwise, the same on CPU and CUDA (but the sign of NaN).
/// Source: Micikevicius et al., "FP8 Formats for Deep Learning", 2022; blocks of 1 x 128 and
/// 128 x 128: DeepSeek-AI, "DeepSeek-V3 Technical Report", 2024, section 3.3.2.
#pragma once

#include "core/fp8.h"
#include "core/tensor_view.h"

namespace megacore {

struct Fp8Quantize {
    TensorView out;    ///< [M, K] out, float8_e4m3fn or float8_e5m2
    TensorView out_t;  ///< [K, M] out, the same; optional
    TensorView amax;   ///< [1] in and out, float32
    TensorView x;      ///< [M, K]
    TensorView scale;  ///< [1] float32
};

struct Fp8QuantizeBlocks {
    TensorView out;        ///< [M, K] out, float8_e4m3fn or float8_e5m2
    TensorView inverse;    ///< [ceil(M / rows), ceil(K / columns)] out, float32
    TensorView x;          ///< [M, K]
    std::int64_t rows;     ///< Of a block: 1 or 128.
    std::int64_t columns;  ///< Of a block: 128.
};

/// The format that a dtype is.
constexpr Fp8Format fp8_format(DType dtype) {
    return dtype == DType::kFloat8E5M2 ? Fp8Format::kE5M2 : Fp8Format::kE4M3;
}

/// Throws when a tensor is missing or has a wrong shape, dtype or layout; the message names it.
void check(const Fp8Quantize& args);
void check(const Fp8QuantizeBlocks& args);

namespace cpu {
void fp8_quantize(const Fp8Quantize& args);
void fp8_quantize_blocks(const Fp8QuantizeBlocks& args);
}  // namespace cpu

namespace cuda {
/// `stream` is a cudaStream_t. Nothing is synchronized.
void fp8_quantize(const Fp8Quantize& args, void* stream);
void fp8_quantize_blocks(const Fp8QuantizeBlocks& args, void* stream);
}  // namespace cuda

}  // namespace megacore
