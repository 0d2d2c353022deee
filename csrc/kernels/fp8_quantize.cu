// CUDA kernels of fp8_quantize.h.
//
// Per tensor a block of threads takes a tile of 64 x 128: it reads rows 16 bytes a thread, writes
// their codes, and keeps them in shared memory for the transpose. Per block of a tensor, one block
// of threads finds the maximum and reads again, from the caches. Bound by memory.
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <type_traits>

#include "core/math.h"
#include "kernels/fp8_quantize.h"
#include "kernels/launch.h"
#include "kernels/reduce.cuh"
#include "kernels/vec.cuh"
#include "kernels/visit_dtypes.h"

namespace megacore::cuda {
namespace {

// --- Parameters ---------------------------------------------------------------------------------

constexpr int kThreads = 256;
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;

template <class T>
struct Params {
    std::uint8_t* out;    // [M, K]
    std::uint8_t* out_t;  // [K, M] or null
    float* amax;          // [1]
    const T* x;           // [M, K]
    const float* scale;   // [1]
    std::int64_t rows;
    std::int64_t columns;
};

template <class T>
struct BlockParams {
    std::uint8_t* out;  // [M, K]
    float* inverse;     // [blocks down, blocks across]
    const T* x;         // [M, K]
    std::int64_t rows;
    std::int64_t columns;
    std::int64_t block_rows;
    std::int64_t block_columns;
};

// --- Device helpers -----------------------------------------------------------------------------

template <Fp8Format kFormat>
__device__ __forceinline__ std::uint8_t code(float value) {
    return __nv_cvt_float_to_fp8(
        value, __NV_SATFINITE, kFormat == Fp8Format::kE4M3 ? __NV_E4M3 : __NV_E5M2);
}

// --- Kernels ------------------------------------------------------------------------------------

// Grid: tiles across, tiles down. All columns of a vector exist or none.
template <class T, Fp8Format kFormat, int kVec>
__global__ void __launch_bounds__(kThreads) fp8_quantize_kernel(const Params<T> p) {
    __shared__ std::uint8_t tile[kTileColumns][kTileRows + 4];
    __shared__ float scratch[kWarpSize];
    constexpr int kAcross = kTileColumns / kVec;
    const std::int64_t first_row = static_cast<std::int64_t>(blockIdx.y) * kTileRows;
    const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * kTileColumns;
    const float scale = *p.scale;
    float largest = 0.0f;
    for (int item = threadIdx.x; item < kTileRows * kAcross; item += kThreads) {
        const int r = item / kAcross;
        const int c = item % kAcross * kVec;
        const std::int64_t row = first_row + r;
        const std::int64_t column = first_column + c;
        if (row >= p.rows || column >= p.columns) continue;
        const auto x = Pack<T, kVec>::load(p.x + row * p.columns + column);
        Pack<std::uint8_t, kVec> codes;
#pragma unroll
        for (int k = 0; k < kVec; ++k) {
            const float value = widen(x.elements[k]);
            largest = fmaxf(largest, fabsf(value));  // not NaN
            codes.elements[k] = code<kFormat>(value * scale);
            if (p.out_t != nullptr) tile[c + k][r] = codes.elements[k];
        }
        codes.store(p.out + row * p.columns + column);
    }
    largest = row_max(largest, scratch);
    // Magnitudes are ordered like their bits.
    if (threadIdx.x == 0) atomicMax(reinterpret_cast<int*>(p.amax), __float_as_int(largest));
    if (p.out_t == nullptr) return;
    __syncthreads();  // the tile is complete
    for (int item = threadIdx.x; item < kTileRows * kTileColumns; item += kThreads) {
        const int r = item % kTileRows;
        const int c = item / kTileRows;
        if (first_row + r < p.rows && first_column + c < p.columns) {
            p.out_t[(first_column + c) * p.rows + first_row + r] = tile[c][r];
        }
    }
}

// Grid: blocks across, blocks down; blockDim.x is a multiple of the warp size.
template <class T, Fp8Format kFormat>
__global__ void __launch_bounds__(kThreads) fp8_quantize_blocks_kernel(const BlockParams<T> p) {
    __shared__ float scratch[kWarpSize];
    const std::int64_t first_row = blockIdx.y * p.block_rows;
    const std::int64_t first_column = blockIdx.x * p.block_columns;
    const int size = static_cast<int>(p.block_rows * p.block_columns);
    const int across = static_cast<int>(p.block_columns);
    const auto for_each = [&](const auto& body) {
        for (int item = threadIdx.x; item < size; item += blockDim.x) {
            const std::int64_t row = first_row + item / across;
            const std::int64_t column = first_column + item % across;
            if (row < p.rows && column < p.columns) body(row * p.columns + column);
        }
    };
    float largest = 0.0f;
    for_each([&](std::int64_t at) { largest = fmaxf(largest, fabsf(widen(p.x[at]))); });
    largest = row_max(largest, scratch);
    const int exponent = fp8_block_exponent(kFormat, __float_as_uint(largest));
    const float scale = __uint_as_float(power_of_two_bits(exponent));
    for_each([&](std::int64_t at) { p.out[at] = code<kFormat>(widen(p.x[at]) * scale); });
    if (threadIdx.x == 0) {
        p.inverse[static_cast<std::int64_t>(blockIdx.y) * gridDim.x + blockIdx.x] =
            __uint_as_float(power_of_two_bits(-exponent));
    }
}

// --- Launchers ----------------------------------------------------------------------------------

// Calls body(format, tag of the device type) with an integral constant.
template <class Body>
void dispatch(DType out, DType x, const Body& body) {
    visit_float_dtype(x, [&](auto tag) {
        const TypeTag<typename DeviceType<typename decltype(tag)::type>::type> device_tag;
        if (fp8_format(out) == Fp8Format::kE4M3) {
            body(std::integral_constant<Fp8Format, Fp8Format::kE4M3>{}, device_tag);
        } else {
            body(std::integral_constant<Fp8Format, Fp8Format::kE5M2>{}, device_tag);
        }
    });
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

void fp8_quantize(const Fp8Quantize& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    dispatch(args.out.dtype, args.x.dtype, [&](auto format, auto tag) {
        using T = typename decltype(tag)::type;
        const Params<T> params{.out = args.out.as<std::uint8_t>(),
                               .out_t = args.out_t.as<std::uint8_t>(),
                               .amax = args.amax.as<float>(),
                               .x = args.x.as<const T>(),
                               .scale = args.scale.as<const float>(),
                               .rows = args.x.sizes[0],
                               .columns = args.x.sizes[1]};
        constexpr int kWide = 16 / static_cast<int>(sizeof(T));
        const LaunchShape shape{
            .grid = dim3(static_cast<unsigned>(ceil_div(params.columns, kTileColumns)),
                         static_cast<unsigned>(ceil_div(params.rows, kTileRows))),
            .block = dim3(kThreads),
            .stream = stream};
        const bool vectors =
            params.columns % kWide == 0 && aligned16(params.x) && aligned16(params.out);
        launch(
            vectors ? fp8_quantize_kernel<T, format(), kWide> : fp8_quantize_kernel<T, format(), 1>,
            shape,
            params);
    });
}

void fp8_quantize_blocks(const Fp8QuantizeBlocks& args, void* stream) {
    check(args);
    if (args.x.numel() == 0) return;
    dispatch(args.out.dtype, args.x.dtype, [&](auto format, auto tag) {
        using T = typename decltype(tag)::type;
        const BlockParams<T> params{.out = args.out.as<std::uint8_t>(),
                                    .inverse = args.inverse.as<float>(),
                                    .x = args.x.as<const T>(),
                                    .rows = args.x.sizes[0],
                                    .columns = args.x.sizes[1],
                                    .block_rows = args.rows,
                                    .block_columns = args.columns};
        const LaunchShape shape{.grid = dim3(static_cast<unsigned>(args.inverse.sizes[1]),
                                             static_cast<unsigned>(args.inverse.sizes[0])),
                                .block = dim3(args.rows == 1 ? kWarpSize : kThreads),
                                .stream = stream};
        launch(fp8_quantize_blocks_kernel<T, format()>, shape, params);
    });
}

}  // namespace megacore::cuda
