// The CUDA emulation: indices, barriers, shuffles, votes, warp reductions and atomics mean what the
// CUDA programming guide says, in any order of execution.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <bit>
#include <numeric>
#include <set>

#include "kernels/launch.h"
#include "runtime/emulator.h"

namespace megacore::cuda {
namespace {

using cuda_emulation::DeviceArray;
using cuda_emulation::settings;

constexpr unsigned kAll = 0xffffffffu;
constexpr unsigned kSeeds = 5;

// --- Indices and order --------------------------------------------------------------------------

__global__ void indices_kernel(unsigned* out) {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    out[block * blockDim.x * blockDim.y * blockDim.z + thread] = block * 1000 + thread;
}

TEST(CudaEmulation, EveryThreadOfEveryBlockRunsOnce) {
    DeviceArray<unsigned> out("out", 2 * 3 * 4 * 5 * 7 * 3);
    launch(indices_kernel, {.grid = {2, 3, 4}, .block = {5, 7, 3}}, out.data());
    const std::vector<unsigned> values = out.values();
    for (unsigned i = 0; i < values.size(); ++i) {
        ASSERT_EQ(values[i], i / 105 * 1000 + i % 105);
    }
}

__global__ void order_kernel(unsigned* next, unsigned* block_order, unsigned* thread_order) {
    if (blockIdx.x == 3) thread_order[atomicAdd(next + 1, 1u)] = threadIdx.x;
    if (threadIdx.x == 0) block_order[atomicAdd(next, 1u)] = blockIdx.x;
}

TEST(CudaEmulation, OrderOfBlocksAndThreadsDependsOnTheSeed) {
    std::set<std::vector<unsigned>> block_orders, thread_orders;
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        for (int repeat = 0; repeat < 2; ++repeat) {  // the same seed gives the same order
            DeviceArray<unsigned> next("next", std::vector<unsigned>(2));
            DeviceArray<unsigned> blocks("blocks", 20), threads("threads", 70);
            launch(order_kernel,
                   {.grid = {20}, .block = {70}},
                   next.data(),
                   blocks.data(),
                   threads.data());
            block_orders.insert(blocks.values());
            thread_orders.insert(threads.values());
        }
    }
    EXPECT_EQ(block_orders.size(), kSeeds);
    EXPECT_EQ(thread_orders.size(), kSeeds);
    for (std::vector<unsigned> order : thread_orders) {
        std::sort(order.begin(), order.end());
        for (unsigned i = 0; i < 70; ++i) EXPECT_EQ(order[i], i);
    }
}

// --- Block barriers and shared memory -----------------------------------------------------------

template <int kCapacity>
__global__ void reverse_kernel(int* out, const int* in, int size) {
    __shared__ int fixed[kCapacity];
    extern __shared__ int dynamic[];
    const int i = static_cast<int>(threadIdx.x);
    fixed[i] = in[blockIdx.x * size + i];
    dynamic[i] = 10 * fixed[i];
    __syncthreads();
    const int other = size - 1 - i;
    out[blockIdx.x * size + i] = fixed[other] + dynamic[other];
}

TEST(CudaEmulation, StaticAndDynamicSharedMemory) {
    constexpr int kSize = 173;
    std::vector<int> values(4 * kSize);
    std::iota(values.begin(), values.end(), 1);
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        DeviceArray<int> in("in", values), out("out", values.size());
        launch(reverse_kernel<256>,
               {.grid = {4}, .block = {kSize}, .shared_bytes = kSize * sizeof(int)},
               out.data(),
               in.data(),
               kSize);
        const std::vector<int> reversed = out.values();
        for (int i = 0; i < 4 * kSize; ++i) {
            const int mirror = i / kSize * kSize + kSize - 1 - i % kSize;
            ASSERT_EQ(reversed[i], 11 * values[mirror]);
        }
    }
}

__global__ void barrier_reductions_kernel(int* out) {
    const int i = static_cast<int>(threadIdx.x);
    const int count = __syncthreads_count(i % 3 == 0);
    const int all = __syncthreads_and(i < 100);
    const int not_all = __syncthreads_and(i != 57);
    const int any = __syncthreads_or(i == 99);
    const int none = __syncthreads_or(i > 99);
    out[i] = count * 10000 + all * 1000 + not_all * 100 + any * 10 + none;
}

TEST(CudaEmulation, BarriersThatReduce) {
    DeviceArray<int> out("out", 100);
    launch(barrier_reductions_kernel, {.grid = {1}, .block = {100}}, out.data());
    for (const int value : out.values()) EXPECT_EQ(value, 34 * 10000 + 1000 + 10);
}

// --- Shuffles -----------------------------------------------------------------------------------

template <class T>
__global__ void shuffles_kernel(T* out, int width) {
    const int lane = static_cast<int>(threadIdx.x);
    const T own = static_cast<T>(lane + 1);
    out[lane] = __shfl_sync(kAll, own, lane * 7 + 3, width);
    out[32 + lane] = __shfl_up_sync(kAll, own, 3, width);
    out[64 + lane] = __shfl_down_sync(kAll, own, 5, width);
    out[96 + lane] = __shfl_xor_sync(kAll, own, 6, width);
}

template <class T>
void check_shuffles() {
    for (const int width : {1, 2, 4, 8, 16, 32}) {
        settings().seed = static_cast<std::uint64_t>(width);
        DeviceArray<T> out("out", 128);
        launch(shuffles_kernel<T>, {.grid = {1}, .block = {32}}, out.data(), width);
        const std::vector<T> got = out.values();
        for (int lane = 0; lane < 32; ++lane) {
            const int first = lane / width * width;
            const int in_segment = lane - first;
            const auto value = [](int source) { return static_cast<T>(source + 1); };
            EXPECT_EQ(got[lane], value(first + (lane * 7 + 3) % width));
            EXPECT_EQ(got[32 + lane], value(in_segment >= 3 ? lane - 3 : lane));
            EXPECT_EQ(got[64 + lane], value(in_segment + 5 < width ? lane + 5 : lane));
            EXPECT_EQ(got[96 + lane], value((lane ^ 6) < first + width ? lane ^ 6 : lane));
        }
    }
}

TEST(CudaEmulation, ShufflesOfAllKindsAndWidths) {
    check_shuffles<int>();
    check_shuffles<unsigned long long>();
    check_shuffles<double>();
    check_shuffles<__nv_bfloat16>();
    check_shuffles<float>();
}

// Two halves of a warp meet separately and do not meet as often.
__global__ void masked_kernel(int* out) {
    const int lane = static_cast<int>(threadIdx.x);
    int value = lane;
    if (lane < 16) {
        for (int offset = 8; offset > 0; offset /= 2) {
            value += __shfl_xor_sync(0x0000ffffu, value, offset);
        }
    } else {
        for (int round = 0; round < 3; ++round) {
            value = __shfl_sync(0xffff0000u, value, 16 + (lane + 1) % 16);
        }
    }
    __syncwarp();
    out[lane] = value;
}

TEST(CudaEmulation, ShufflesUnderDifferentMasks) {
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        DeviceArray<int> out("out", 32);
        launch(masked_kernel, {.grid = {1}, .block = {32}}, out.data());
        const std::vector<int> got = out.values();
        for (int lane = 0; lane < 16; ++lane) EXPECT_EQ(got[lane], 120);
        for (int lane = 16; lane < 32; ++lane) EXPECT_EQ(got[lane], 16 + (lane + 3) % 16);
    }
}

// --- Votes and reductions -----------------------------------------------------------------------

__global__ void votes_kernel(unsigned* out) {
    const unsigned lane = threadIdx.x;
    int all_equal = -1;
    out[lane * 10 + 0] = __ballot_sync(kAll, lane % 5 == 0);
    out[lane * 10 + 1] = static_cast<unsigned>(__any_sync(kAll, lane == 31));
    out[lane * 10 + 2] = static_cast<unsigned>(__all_sync(kAll, lane < 31));
    out[lane * 10 + 3] = __match_any_sync(kAll, lane % 4);
    out[lane * 10 + 4] = __match_all_sync(kAll, lane / 32, &all_equal);
    out[lane * 10 + 5] = static_cast<unsigned>(all_equal);
    out[lane * 10 + 6] = __reduce_add_sync(kAll, lane * lane);
    out[lane * 10 + 7] = static_cast<unsigned>(__reduce_min_sync(kAll, 5 - static_cast<int>(lane)));
    out[lane * 10 + 8] = __reduce_max_sync(kAll, lane ^ 21u);
    out[lane * 10 + 9] = __reduce_xor_sync(kAll, 1u << lane) ^ __reduce_or_sync(kAll, lane) ^
                         __reduce_and_sync(kAll, lane | 64u);
}

TEST(CudaEmulation, VotesMatchesAndReductions) {
    DeviceArray<unsigned> out("out", 320);
    launch(votes_kernel, {.grid = {1}, .block = {32}}, out.data());
    const std::vector<unsigned> got = out.values();
    for (unsigned lane = 0; lane < 32; ++lane) {
        const unsigned* row = got.data() + lane * 10;
        EXPECT_EQ(row[0], 0x42108421u);
        EXPECT_EQ(row[1], 1u);
        EXPECT_EQ(row[2], 0u);
        EXPECT_EQ(row[3], 0x11111111u << (lane % 4));
        EXPECT_EQ(row[4], kAll);
        EXPECT_EQ(row[5], 1u);
        EXPECT_EQ(row[6], 31u * 32u * 63u / 6u);
        EXPECT_EQ(static_cast<int>(row[7]), -26);
        EXPECT_EQ(row[8], 31u);
        EXPECT_EQ(row[9], kAll ^ 31u ^ 64u);
    }
}

// --- Order within a warp ------------------------------------------------------------------------

__global__ void warp_transpose_kernel(int* out) {
    __shared__ int row[32];
    row[threadIdx.x] = static_cast<int>(threadIdx.x);
    __syncwarp();
    const int next = row[(threadIdx.x + 1) % 32];
    __syncwarp();
    row[threadIdx.x] = next;
    __syncwarp();
    out[threadIdx.x] = row[(threadIdx.x + 1) % 32];
}

TEST(CudaEmulation, SyncWarpOrdersSharedMemory) {
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        DeviceArray<int> out("out", 32);
        launch(warp_transpose_kernel, {.grid = {1}, .block = {32}}, out.data());
        const std::vector<int> got = out.values();
        for (int lane = 0; lane < 32; ++lane) EXPECT_EQ(got[lane], (lane + 2) % 32);
    }
}

// --- Atomics ------------------------------------------------------------------------------------

__global__ void atomics_kernel(int* ints, unsigned* wraps, float* sum, unsigned long long* cas) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
    atomicAdd(ints + 0, i);
    atomicSub(ints + 1, i);
    atomicMax(ints + 2, i);
    atomicMin(ints + 3, -i);
    atomicOr(ints + 4, 1 << (i % 20));
    atomicXor(ints + 5, i);
    atomicAnd(ints + 6, ~(1 << (i % 7)));
    atomicInc(wraps + 0, 9u);
    atomicDec(wraps + 1, 9u);
    atomicAdd(sum, 0.5f);
    // 64-bit maximum by compare and swap.
    unsigned long long seen = atomicAdd(cas, 0ull);
    while (seen < static_cast<unsigned long long>(i)) {
        const unsigned long long old = atomicCAS(cas, seen, static_cast<unsigned long long>(i));
        if (old == seen) break;
        seen = old;
    }
}

TEST(CudaEmulation, Atomics) {
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        DeviceArray<int> ints("ints", std::vector<int>{0, 0, 0, 0, 0, 0, 0x7f});
        DeviceArray<unsigned> wraps("wraps", std::vector<unsigned>{0, 0});
        DeviceArray<float> sum("sum", std::vector<float>{0.0f});
        DeviceArray<unsigned long long> cas("cas", std::vector<unsigned long long>{0});
        launch(atomics_kernel,
               {.grid = {3}, .block = {67}},
               ints.data(),
               wraps.data(),
               sum.data(),
               cas.data());
        int xor_of_all = 0;
        for (int i = 0; i < 201; ++i) xor_of_all ^= i;
        EXPECT_EQ(ints.values(),
                  (std::vector<int>{20100, -20100, 200, -200, 0xfffff, xor_of_all, 0}));
        EXPECT_EQ(wraps.values(), (std::vector<unsigned>{201 % 10, 10 - 201 % 10}));
        EXPECT_EQ(sum.values()[0], 100.5f);
        EXPECT_EQ(cas.values()[0], 200u);
    }
}

// The block that comes last adds up what the others wrote: ordered by the atomic.
__global__ void last_block_kernel(float* total, float* shares, unsigned* arrived) {
    __shared__ bool last;
    if (threadIdx.x == 0) {
        shares[blockIdx.x] = static_cast<float>(blockIdx.x + 1);
        __threadfence();
        last = atomicAdd(arrived, 1u) == gridDim.x - 1;
    }
    __syncthreads();
    if (!last || threadIdx.x != 0) return;
    float sum = 0.0f;
    for (unsigned block = 0; block < gridDim.x; ++block) sum += shares[block];
    *total = sum;
}

TEST(CudaEmulation, LastBlockSeesTheOthers) {
    for (unsigned seed = 0; seed < kSeeds; ++seed) {
        settings().seed = seed;
        DeviceArray<float> total("total", 1), shares("shares", 37);
        DeviceArray<unsigned> arrived("arrived", std::vector<unsigned>{0});
        launch(last_block_kernel,
               {.grid = {37}, .block = {64}},
               total.data(),
               shares.data(),
               arrived.data());
        EXPECT_EQ(total.values()[0], 37.0f * 38.0f / 2.0f);
    }
}

// --- The host's side ----------------------------------------------------------------------------

TEST(CudaEmulation, LaunchesOutOfContractAreRefused) {
    DeviceArray<unsigned> out("out", 4096);
    EXPECT_THROW(launch(indices_kernel, {.grid = {1}, .block = {1025}}, out.data()), Error);
    EXPECT_THROW(launch(indices_kernel, {.grid = {0}, .block = {32}}, out.data()), Error);
    DeviceArray<int> in("in", std::vector<int>(32)), reversed("reversed", 32);
    const LaunchShape large{.grid = {1}, .block = {32}, .shared_bytes = 64 * 1024};
    EXPECT_THROW(launch(reverse_kernel<32>, large, reversed.data(), in.data(), 32), Error);
    EXPECT_EQ(cudaFuncSetAttribute(
                  reverse_kernel<32>, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 * 1024),
              cudaSuccess);
    launch(reverse_kernel<32>, large, reversed.data(), in.data(), 32);
}

TEST(CudaEmulation, CooperativeLaunchIsRefused) {
    DeviceArray<unsigned> out("out", 32);
    cudaLaunchAttribute attribute{.id = cudaLaunchAttributeCooperative, .val = {}};
    attribute.val.cooperative = 1;
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(1);
    config.blockDim = dim3(32);
    config.attrs = &attribute;
    config.numAttrs = 1;
    cudaGetLastError();
    EXPECT_EQ(cudaLaunchKernelEx(&config, indices_kernel, out.data()), cudaErrorNotSupported);
    EXPECT_EQ(cudaGetLastError(), cudaErrorNotSupported);
    EXPECT_EQ(cudaGetLastError(), cudaSuccess);
}

}  // namespace
}  // namespace megacore::cuda
