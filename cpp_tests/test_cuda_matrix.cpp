// The CUDA emulation's asynchronous copies and matrix instructions, against plain loops.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <random>

#include "cuda_emulation/matrix.h"
#include "kernels/launch.h"
#include "runtime/emulator.h"

namespace megacore::cuda {
namespace {

using cuda_emulation::DeviceArray;
using cuda_emulation::Fault;
using cuda_emulation::settings;

// --- mma.sync -----------------------------------------------------------------------------------

template <class T>
__device__ std::uint32_t packed(T low, T high) {
    return static_cast<std::uint32_t>(low.bits()) | static_cast<std::uint32_t>(high.bits()) << 16;
}

// D [16, 8] = A [16, 16] B [16, 8] + C, registers filled by hand from the layout of the PTX manual.
template <class T>
__global__ void mma_kernel(float* d, const T* a, const T* b, const float* c) {
    const int group = static_cast<int>(threadIdx.x) / 4;
    const int pair = 2 * (static_cast<int>(threadIdx.x) % 4);
    const auto of_a = [&](int row, int column) {
        return packed(a[row * 16 + column], a[row * 16 + column + 1]);
    };
    const auto of_b = [&](int row, int column) {
        return packed(b[row * 8 + column], b[(row + 1) * 8 + column]);
    };
    const std::uint32_t a_registers[4] = {
        of_a(group, pair), of_a(group + 8, pair), of_a(group, pair + 8), of_a(group + 8, pair + 8)};
    const std::uint32_t b_registers[2] = {of_b(pair, group), of_b(pair + 8, group)};
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = c[(group + i / 2 * 8) * 8 + pair + i % 2];
    if constexpr (std::is_same_v<T, __half>) {
        cuda_emulation::mma_m16n8k16_f16(sums, a_registers, b_registers, sums);
    } else {
        cuda_emulation::mma_m16n8k16_bf16(sums, a_registers, b_registers, sums);
    }
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sums[i];
}

// The same by ldmatrix from shared memory: A row-major, B row-major and therefore transposed,
// copied there by cp.async.
template <class T>
__global__ void staged_mma_kernel(float* d, const T* a, const T* b, const float* c) {
    __shared__ __align__(16) T a_tile[16][16];
    __shared__ __align__(16) T b_tile[16][8];
    const int lane = static_cast<int>(threadIdx.x);
    __pipeline_memcpy_async(&a_tile[lane / 2][lane % 2 * 8], a + lane * 8, 16);
    __pipeline_commit();
    if (lane < 16) __pipeline_memcpy_async(&b_tile[lane][0], b + lane * 8, 16);
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
    std::uint32_t a_registers[4];
    std::uint32_t b_registers[2];
    cuda_emulation::ldmatrix(a_registers, &a_tile[lane % 16][lane / 16 * 8]);
    cuda_emulation::ldmatrix_trans(b_registers, &b_tile[lane % 16][0]);
    const int group = lane / 4;
    const int pair = 2 * (lane % 4);
    float sums[4];
    for (int i = 0; i < 4; ++i) sums[i] = c[(group + i / 2 * 8) * 8 + pair + i % 2];
    if constexpr (std::is_same_v<T, __half>) {
        cuda_emulation::mma_m16n8k16_f16(sums, a_registers, b_registers, sums);
    } else {
        cuda_emulation::mma_m16n8k16_bf16(sums, a_registers, b_registers, sums);
    }
    for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + pair + i % 2] = sums[i];
}

template <class T>
void check_product(void (*kernel)(float*, const T*, const T*, const float*)) {
    std::mt19937 engine(7);
    std::normal_distribution<float> normal;
    std::vector<T> a(16 * 16), b(16 * 8);
    std::vector<float> c(16 * 8);
    for (T& value : a) value = T(normal(engine));
    for (T& value : b) value = T(normal(engine));
    for (float& value : c) value = normal(engine);
    for (unsigned seed = 0; seed < 3; ++seed) {
        settings().seed = seed;
        DeviceArray<T> a_device("a", a), b_device("b", b);
        DeviceArray<float> c_device("c", c), d_device("d", c.size());
        launch(kernel,
               {.grid = {1}, .block = {32}},
               d_device.data(),
               a_device.data(),
               b_device.data(),
               c_device.data());
        const std::vector<float> d = d_device.values();
        for (int row = 0; row < 16; ++row) {
            for (int column = 0; column < 8; ++column) {
                double sum = c[row * 8 + column];
                for (int k = 0; k < 16; ++k) {
                    sum += double{static_cast<float>(a[row * 16 + k])} *
                           static_cast<float>(b[k * 8 + column]);
                }
                ASSERT_EQ(d[row * 8 + column], static_cast<float>(sum)) << row << ", " << column;
            }
        }
    }
}

TEST(CudaMatrix, MultiplyWithRegistersFilledByHand) {
    check_product<__nv_bfloat16>(mma_kernel<__nv_bfloat16>);
    check_product<__half>(mma_kernel<__half>);
}

TEST(CudaMatrix, MultiplyFromSharedMemory) {
    check_product<__nv_bfloat16>(staged_mma_kernel<__nv_bfloat16>);
    check_product<__half>(staged_mma_kernel<__half>);
}

// --- ldmatrix -----------------------------------------------------------------------------------

template <int kCount, bool kTransposed>
__global__ void ldmatrix_kernel(std::uint32_t* out, int shift) {
    __shared__ __align__(16) std::uint16_t tiles[4 * 8 * 8 + 8];
    for (int i = static_cast<int>(threadIdx.x); i < 264; i += 32) {
        tiles[i] = static_cast<std::uint16_t>(i);
    }
    __syncwarp();
    std::uint32_t registers[kCount];
    const std::uint16_t* row = tiles + threadIdx.x * 8 + shift;
    if constexpr (kTransposed) {
        cuda_emulation::ldmatrix_trans(registers, row);
    } else {
        cuda_emulation::ldmatrix(registers, row);
    }
    for (int j = 0; j < kCount; ++j) out[threadIdx.x * kCount + j] = registers[j];
}

template <int kCount, bool kTransposed>
void check_ldmatrix() {
    DeviceArray<std::uint32_t> out("out", 32 * kCount);
    launch(ldmatrix_kernel<kCount, kTransposed>, {.grid = {1}, .block = {32}}, out.data(), 0);
    const std::vector<std::uint32_t> got = out.values();
    for (unsigned lane = 0; lane < 32; ++lane) {
        for (unsigned j = 0; j < kCount; ++j) {
            const auto element = [&](unsigned minor) {
                const unsigned major = lane / 4;
                return j * 64 + (kTransposed ? minor * 8 + major : major * 8 + minor);
            };
            const unsigned first = lane % 4 * 2;
            EXPECT_EQ(got[lane * kCount + j], element(first) | element(first + 1) << 16);
        }
    }
}

TEST(CudaMatrix, LoadMatricesOfAllSizes) {
    check_ldmatrix<1, false>();
    check_ldmatrix<2, false>();
    check_ldmatrix<4, false>();
    check_ldmatrix<1, true>();
    check_ldmatrix<2, true>();
    check_ldmatrix<4, true>();
}

TEST(CudaMatrix, LoadOfAMisalignedRowIsAFault) {
    DeviceArray<std::uint32_t> out("out", 128);
    const auto kernel = ldmatrix_kernel<4, false>;
    EXPECT_THROW(launch(kernel, {.grid = {1}, .block = {32}}, out.data(), 1), Fault);
}

TEST(CudaMatrix, PartOfAWarpIsAFault) {
    DeviceArray<std::uint32_t> out("out", 128);
    const auto kernel = ldmatrix_kernel<4, false>;
    EXPECT_THROW(launch(kernel, {.grid = {1}, .block = {16}}, out.data(), 0), Fault);
}

// --- cp.async -----------------------------------------------------------------------------------

// Sums `tiles` tiles through a ring of three stages, two copies ahead.
__global__ void pipelined_sum_kernel(float* out, const float4* in, int tiles) {
    constexpr int kStages = 3;
    __shared__ float4 ring[kStages][64];
    const int i = static_cast<int>(threadIdx.x);
    const auto fetch = [&](int tile) {
        if (tile < tiles) {
            __pipeline_memcpy_async(&ring[tile % kStages][i], in + tile * 64 + i, 16);
        }
        __pipeline_commit();
    };
    for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
    float sum = 0.0f;
    for (int tile = 0; tile < tiles; ++tile) {
        __pipeline_wait_prior(kStages - 2);
        __syncthreads();
        fetch(tile + kStages - 1);
        const float4 value = ring[tile % kStages][63 - i];
        sum += value.x + value.y + value.z + value.w;
    }
    out[i] = sum;
}

TEST(CudaMatrix, AsynchronousCopiesInGroups) {
    constexpr int kTiles = 7;
    std::vector<float> values(kTiles * 256);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 97);
    for (unsigned seed = 0; seed < 3; ++seed) {
        settings().seed = seed;
        DeviceArray<float> in("in", values), out("out", 64);
        launch(pipelined_sum_kernel,
               {.grid = {1}, .block = {64}},
               out.data(),
               reinterpret_cast<const float4*>(in.data()),
               kTiles);
        const std::vector<float> sums = out.values();
        for (int i = 0; i < 64; ++i) {
            float expected = 0.0f;
            for (int tile = 0; tile < kTiles; ++tile) {
                for (int k = 0; k < 4; ++k) expected += values[tile * 256 + (63 - i) * 4 + k];
            }
            EXPECT_EQ(sums[i], expected);  // integers, exact in any order
        }
    }
}

__global__ void zero_fill_kernel(float* out, const float* in) {
    __shared__ float4 staged;
    if (threadIdx.x == 0) {
        __pipeline_memcpy_async(&staged, in, 16, 8);
        __pipeline_commit();
        __pipeline_wait_prior(0);
        out[0] = staged.x + staged.y;
        out[1] = staged.z + staged.w;
    }
}

TEST(CudaMatrix, AsynchronousCopyFillsWithZeros) {
    DeviceArray<float> in("in", std::vector<float>{1.0f, 2.0f}), out("out", 2);
    launch(zero_fill_kernel, {.grid = {1}, .block = {1}}, out.data(), in.data());
    EXPECT_EQ(out.values(), (std::vector<float>{3.0f, 0.0f}));
}

}  // namespace
}  // namespace megacore::cuda
