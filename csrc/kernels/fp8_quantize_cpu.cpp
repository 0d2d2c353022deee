// CPU kernels of fp8_quantize.h, compiled once per instruction set.
//
// A piece of a row is multiplied into a buffer in the first-level cache; the loop that makes codes
// of it has no branches, so the compiler turns it into vectors.
#include "kernels/fp8_quantize_cpu.h"

#include <algorithm>
#include <atomic>
#include <bit>

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

constexpr std::int64_t kPiece = 1024;
constexpr std::int64_t kGrainElements = 1 << 14;
constexpr std::int64_t kTile = 64;  // rows and columns that are transposed at a time

// The largest magnitude of `count` elements; NaN does not count.
template <class T>
float largest_of(const T* x, std::int64_t count) {
    Vec largest = Vec::zero();
    for_each_vec(count, [&](auto load, auto) {
        const Vec value = load(x);
        // The second operand is the result where one is NaN.
        largest = Vec::max(value, largest);
        largest = Vec::max(Vec::zero() - value, largest);
    });
    float lanes[Vec::kWidth];
    largest.store(lanes);
    return *std::max_element(lanes, lanes + Vec::kWidth);
}

template <Fp8Format kFormat, class T>
void encode(std::uint8_t* out, const T* x, std::int64_t count, float scale) {
    const Vec factor = Vec::broadcast(scale);
    float scaled[kPiece];
    for (std::int64_t at = 0; at < count; at += kPiece) {
        const std::int64_t size = std::min(kPiece, count - at);
        const T* source = x + at;
        float* target = scaled;
        for_each_vec(size, [&](auto load, auto store) { store(target, load(source) * factor); });
        for (std::int64_t i = 0; i < size; ++i) out[at + i] = to_fp8<kFormat>(scaled[i]);
    }
}

// Magnitudes are ordered like their bits.
void raise(float* largest, float value) {
    std::atomic_ref<float> shared(*largest);
    float seen = shared.load();
    while (value > seen && !shared.compare_exchange_weak(seen, value)) {
    }
}

void transpose_columns(const Fp8Quantize& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t rows = args.x.sizes[0];
    const std::int64_t columns = args.x.sizes[1];
    const std::uint8_t* out = args.out.as<const std::uint8_t>();
    std::uint8_t* out_t = args.out_t.as<std::uint8_t>();
    for (std::int64_t row = 0; row < rows; row += kTile) {
        const std::int64_t last = std::min(row + kTile, rows);
        for (std::int64_t column = begin; column < end; ++column) {
            for (std::int64_t r = row; r < last; ++r) {
                out_t[column * rows + r] = out[r * columns + column];
            }
        }
    }
}

template <Fp8Format kFormat, class T>
void quantize(const Fp8Quantize& args) {
    const std::int64_t size = args.x.numel();
    const float scale = *args.scale.as<const float>();
    const std::int64_t pieces = ceil_div(size, kGrainElements);
    parallel_for(0, pieces, 1, [&](std::int64_t begin, std::int64_t end) {
        const std::int64_t first = begin * kGrainElements;
        const std::int64_t count = std::min(end * kGrainElements, size) - first;
        const T* x = args.x.as<const T>() + first;
        raise(args.amax.as<float>(), largest_of(x, count));
        encode<kFormat>(args.out.as<std::uint8_t>() + first, x, count, scale);
    });
    if (!args.out_t.present()) return;
    const std::int64_t tiles = ceil_div(args.x.sizes[1], kTile);
    parallel_for(0, tiles, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t tile = begin; tile < end; ++tile) {
            transpose_columns(args, tile * kTile, std::min((tile + 1) * kTile, args.x.sizes[1]));
        }
    });
}

template <Fp8Format kFormat, class T>
void quantize_block_row(const Fp8QuantizeBlocks& args, std::int64_t block_row) {
    const std::int64_t columns = args.x.sizes[1];
    const std::int64_t first = block_row * args.rows;
    const std::int64_t last = std::min(first + args.rows, args.x.sizes[0]);
    float* inverse = args.inverse.as<float>() + block_row * args.inverse.sizes[1];
    for (std::int64_t column = 0; column < columns; column += args.columns) {
        const std::int64_t width = std::min(args.columns, columns - column);
        float largest = 0.0f;
        for (std::int64_t row = first; row < last; ++row) {
            const T* x = args.x.as<const T>() + row * columns + column;
            largest = std::max(largest, largest_of(x, width));
        }
        const int exponent = fp8_block_exponent(kFormat, std::bit_cast<std::uint32_t>(largest));
        *inverse++ = std::bit_cast<float>(power_of_two_bits(-exponent));
        for (std::int64_t row = first; row < last; ++row) {
            const std::int64_t at = row * columns + column;
            encode<kFormat>(args.out.as<std::uint8_t>() + at,
                            args.x.as<const T>() + at,
                            width,
                            std::bit_cast<float>(power_of_two_bits(exponent)));
        }
    }
}

// Calls body(format, tag of the element type) with an integral constant.
template <class Body>
void dispatch(DType out, DType x, const Body& body) {
    visit_float_dtype(x, [&](auto tag) {
        if (fp8_format(out) == Fp8Format::kE4M3) {
            body(std::integral_constant<Fp8Format, Fp8Format::kE4M3>{}, tag);
        } else {
            body(std::integral_constant<Fp8Format, Fp8Format::kE5M2>{}, tag);
        }
    });
}

void tensor(const Fp8Quantize& args) {
    dispatch(args.out.dtype, args.x.dtype, [&](auto format, auto tag) {
        quantize<format(), typename decltype(tag)::type>(args);
    });
}

void blocks(const Fp8QuantizeBlocks& args) {
    dispatch(args.out.dtype, args.x.dtype, [&](auto format, auto tag) {
        const std::int64_t grain = ceil_div(kGrainElements, args.x.sizes[1] * args.rows);
        parallel_for(0, args.inverse.sizes[0], grain, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t row = begin; row < end; ++row) {
                quantize_block_row<format(), typename decltype(tag)::type>(args, row);
            }
        });
    });
}

}  // namespace

extern const Fp8QuantizeKernels fp8_quantize_kernels;
const Fp8QuantizeKernels fp8_quantize_kernels{tensor, blocks};

}  // namespace megacore::cpu::MEGACORE_ISA
