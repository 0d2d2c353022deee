// The CUDA emulation finds faults: each kernel here is broken in one way, and the message names the
// kernel, block, thread, address and line.
#include <cuda_pipeline.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <string>

#include "kernels/launch.h"
#include "runtime/emulator.h"

namespace megacore::cuda {
namespace {

using cuda_emulation::DeviceArray;
using cuda_emulation::Fault;
using cuda_emulation::settings;

// Runs the kernel under several seeds; every one must find the fault, with all of `parts` in the
// message.
template <class... Parameters, class... Arguments>
void expect_fault(const std::vector<std::string>& parts,
                  void (*kernel)(Parameters...),
                  const LaunchShape& shape,
                  Arguments... arguments) {
    for (unsigned seed = 0; seed < 5; ++seed) {
        settings().seed = seed;
        try {
            launch(kernel, shape, arguments...);
            ADD_FAILURE() << "no fault was found under seed " << seed;
        } catch (const Fault& fault) {
            const std::string message = fault.what();
            for (const std::string& part : parts) {
                EXPECT_NE(message.find(part), std::string::npos) << part << " is not in:\n"
                                                                 << message;
            }
        }
    }
}

// --- Races --------------------------------------------------------------------------------------

__global__ void missing_barrier_kernel(float* out, const float* in) {
    __shared__ float staged[64];
    staged[threadIdx.x] = in[threadIdx.x];
    out[threadIdx.x] = staged[63 - threadIdx.x];
}

TEST(CudaFaults, ReadOfSharedMemoryBeforeTheBarrier) {
    DeviceArray<float> in("in", std::vector<float>(64, 1.0f)), out("out", 64);
    const LaunchShape shape{.grid = {2}, .block = {64}};
    // Whether the neighbour wrote before or not, something is wrong.
    expect_fault({"shared",
                  "missing_barrier_kernel(float*, float const*)",
                  "block (",
                  "thread (",
                  "test_cuda_faults.cpp:",
                  "of shared staged of 256 bytes"},
                 missing_barrier_kernel,
                 shape,
                 out.data(),
                 in.data());
}

__global__ void write_after_read_kernel(int* out) {
    __shared__ int value;
    if (threadIdx.x == 0) value = 1;
    __syncthreads();
    out[threadIdx.x] = value;
    if (threadIdx.x == 40) value = 2;
}

TEST(CudaFaults, WriteOfSharedMemoryThatOthersStillRead) {
    DeviceArray<int> out("out", 64);
    expect_fault({"race on shared memory", "write_after_read_kernel", "of shared value of 4 bytes"},
                 write_after_read_kernel,
                 {.grid = {1}, .block = {64}},
                 out.data());
}

__global__ void warp_race_kernel(int* out) {
    __shared__ int row[32];
    row[threadIdx.x] = 0;
    __syncwarp(0x0000ffffu << (threadIdx.x / 16 * 16));  // each half by itself
    row[threadIdx.x ^ 16] = static_cast<int>(threadIdx.x);
    __syncwarp();
    out[threadIdx.x] = row[threadIdx.x];
}

TEST(CudaFaults, WarpBarrierWithTheWrongMask) {
    DeviceArray<int> out("out", 32);
    expect_fault({"race on shared memory", "warp_race_kernel", "row of 128 bytes"},
                 warp_race_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data());
}

__global__ void shuffle_is_no_barrier_kernel(int* out) {
    __shared__ int row[32];
    row[threadIdx.x] = static_cast<int>(threadIdx.x);
    const int sum = __shfl_xor_sync(0xffffffffu, 1, 1);
    out[threadIdx.x] = row[threadIdx.x ^ 1] + sum;
}

TEST(CudaFaults, ShuffleOrdersNoMemory) {
    DeviceArray<int> out("out", 32);
    expect_fault({"race on shared memory", "not ordered after the write by thread ("},
                 shuffle_is_no_barrier_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data());
}

__global__ void blocks_race_kernel(float* out) { out[threadIdx.x] += 1.0f; }

TEST(CudaFaults, BlocksThatWriteTheSamePlace) {
    DeviceArray<float> out("out", std::vector<float>(8));
    expect_fault({"race on global memory", "blocks_race_kernel", "of out of 32 bytes", "by block"},
                 blocks_race_kernel,
                 {.grid = {3}, .block = {8}},
                 out.data());
}

__global__ void atomic_and_plain_kernel(int* out) {
    if (threadIdx.x % 2 == 0) {
        atomicAdd(out, 1);
    } else {
        *out = 3;
    }
}

TEST(CudaFaults, AtomicAgainstPlainWrite) {
    DeviceArray<int> out("out", std::vector<int>{0});
    expect_fault({"race on global memory", "atomic"},
                 atomic_and_plain_kernel,
                 {.grid = {1}, .block = {2}},
                 out.data());
}

// --- Barriers -----------------------------------------------------------------------------------

__global__ void divergent_barrier_kernel(int* out) {
    if (threadIdx.x < 32) {
        __syncthreads();
    } else {
        __syncthreads();
    }
    out[threadIdx.x] = 1;
}

TEST(CudaFaults, BarrierInBothBranches) {
    DeviceArray<int> out("out", 64);
    expect_fault({"divergent barrier", "divergent_barrier_kernel", "others wait at the barrier at"},
                 divergent_barrier_kernel,
                 {.grid = {1}, .block = {64}},
                 out.data());
}

__global__ void skipped_barrier_kernel(int* out, unsigned size) {
    if (threadIdx.x >= size) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}

TEST(CudaFaults, BarrierThatSomeThreadsSkip) {
    DeviceArray<int> out("out", 64);
    expect_fault({"missing barrier", "skipped_barrier_kernel"},
                 skipped_barrier_kernel,
                 {.grid = {1}, .block = {64}},
                 out.data(),
                 63u);
}

__global__ void partial_shuffle_kernel(int* out) {
    int value = static_cast<int>(threadIdx.x);
    if (threadIdx.x < 31) value = __shfl_xor_sync(0xffffffffu, value, 1);
    __syncthreads();
    out[threadIdx.x] = value;
}

TEST(CudaFaults, ShuffleThatALaneNeverReaches) {
    DeviceArray<int> out("out", 32);
    expect_fault({"wait for each other for ever",
                  "partial_shuffle_kernel",
                  "for the lanes 0xffffffff",
                  "thread (31, 0, 0) waits at"},
                 partial_shuffle_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data());
}

__global__ void wrong_mask_kernel(int* out) {
    const int value = static_cast<int>(threadIdx.x);
    out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, value, 1);
}

TEST(CudaFaults, CallerOutsideOfItsMask) {
    DeviceArray<int> out("out", 32);
    // Under some orders lane 15 comes first: it reads lane 16, which takes no part.
    expect_fault({"0x0000ffff", "wrong_mask_kernel"},
                 wrong_mask_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data());
}

__global__ void mixed_operations_kernel(int* out) {
    if (threadIdx.x < 16) {
        out[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
    } else {
        out[threadIdx.x] = __any_sync(0xffffffffu, 1);
    }
}

TEST(CudaFaults, LanesInDifferentOperations) {
    DeviceArray<int> out("out", 32);
    expect_fault({"lanes of a warp meet in different operations"},
                 mixed_operations_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data());
}

// --- Bounds -------------------------------------------------------------------------------------

__global__ void global_bounds_kernel(float* out, int size, int first) {
    const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) + first;
    if (i <= size) out[i] = 1.0f;
}

TEST(CudaFaults, GlobalMemoryPastTheEnd) {
    DeviceArray<float> out("out", 100);
    expect_fault({"access out of bounds",
                  "global_bounds_kernel(float*, int, int)",
                  "block (3, 0, 0), thread (4, 0, 0)",
                  "write of 4 bytes",
                  "test_cuda_faults.cpp:",
                  "0 bytes after the end of out of 400 bytes"},
                 global_bounds_kernel,
                 {.grid = {4}, .block = {32}},
                 out.data(),
                 100,
                 0);
}

TEST(CudaFaults, GlobalMemoryBeforeTheStart) {
    DeviceArray<float> out("out", 100);
    expect_fault({"access out of bounds", "thread (0, 0, 0)", "4 bytes before the start of out"},
                 global_bounds_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data(),
                 100,
                 -1);
}

__global__ void vector_over_the_end_kernel(float4* out) { out[threadIdx.x] = float4{1, 2, 3, 4}; }

TEST(CudaFaults, VectorAcrossTheEnd) {
    DeviceArray<float> out("out", 6);
    expect_fault({"access out of bounds", "thread (1, 0, 0)", "out of 24 bytes"},
                 vector_over_the_end_kernel,
                 {.grid = {1}, .block = {2}},
                 reinterpret_cast<float4*>(out.data()));
}

__global__ void host_pointer_kernel(const float* in, float* out) { *out = *in; }

TEST(CudaFaults, PointerToHostMemory) {
    DeviceArray<float> out("out", 1);
    const std::vector<float> host(64);
    expect_fault({"access out of bounds", "read of 4 bytes"},
                 host_pointer_kernel,
                 {.grid = {1}, .block = {1}},
                 host.data(),
                 out.data());
    expect_fault({"access out of bounds", "no memory of the device"},
                 host_pointer_kernel,
                 {.grid = {1}, .block = {1}},
                 static_cast<const float*>(nullptr),
                 out.data());
}

__global__ void shared_bounds_kernel(int* out, int shift) {
    __shared__ int row[32];
    row[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = row[static_cast<int>(threadIdx.x) + shift];
}

TEST(CudaFaults, IndexPastASharedArray) {
    DeviceArray<int> out("out", 32);
    expect_fault({"index out of bounds", "index 32 of", "test_cuda_faults.cpp:"},
                 shared_bounds_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data(),
                 1);
}

// The array is only a pointer here.
__attribute__((noinline)) int read_at(const int* row, int index) { return row[index]; }

__global__ void shared_pointer_kernel(int* out, int index) {
    __shared__ int row[20];
    if (threadIdx.x < 20) row[threadIdx.x] = 1;
    __syncthreads();
    out[threadIdx.x] = read_at(row, index);
}

TEST(CudaFaults, PointerPastASharedArray) {
    DeviceArray<int> out("out", 32);
    expect_fault({"shared memory access out of bounds", "shared memory between variables"},
                 shared_pointer_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data(),
                 20);
}

__global__ void dynamic_bounds_kernel(int* out) {
    extern __shared__ int dynamic_row[];
    dynamic_row[threadIdx.x] = 1;
    out[threadIdx.x] = dynamic_row[threadIdx.x];
}

TEST(CudaFaults, LessDynamicSharedMemoryThanUsed) {
    DeviceArray<int> out("out", 32);
    expect_fault({"shared memory access out of bounds",
                  "thread (31, 0, 0)",
                  "byte 124 of dynamic shared memory of 124 bytes"},
                 dynamic_bounds_kernel,
                 {.grid = {1}, .block = {32}, .shared_bytes = 124},
                 out.data());
}

__global__ void local_array_kernel(int* out, int index) {
    int values[4] = {1, 2, 3, 4};
    values[threadIdx.x % 4] = 7;
    out[threadIdx.x] = values[index];
}

TEST(CudaFaults, IndexPastALocalArray) {
    DeviceArray<int> out("out", 2);
    expect_fault({"index out of bounds", "index 4 of 'int [4]'"},
                 local_array_kernel,
                 {.grid = {1}, .block = {2}},
                 out.data(),
                 4);
}

__global__ void foreign_local_kernel(int* out, int** place) {
    int mine = static_cast<int>(threadIdx.x);
    if (threadIdx.x == 0) *place = &mine;
    __syncthreads();
    out[threadIdx.x] = **place;
    __syncthreads();
    out[threadIdx.x] += mine;
}

TEST(CudaFaults, LocalVariableOfAnotherThread) {
    DeviceArray<int> out("out", 2);
    DeviceArray<int*> place("place", 1);
    expect_fault({"local variable of another thread", "it belongs to thread (0, 0, 0)"},
                 foreign_local_kernel,
                 {.grid = {1}, .block = {2}},
                 out.data(),
                 place.data());
}

// --- Initialization -----------------------------------------------------------------------------

__global__ void copy_kernel(float* out, const float* in) { out[threadIdx.x] = in[threadIdx.x]; }

TEST(CudaFaults, GlobalMemoryThatNobodyWrote) {
    DeviceArray<float> in("in", 4), out("out", 4);
    expect_fault({"read of uninitialized global memory", "copy_kernel", "of in of 16 bytes"},
                 copy_kernel,
                 {.grid = {1}, .block = {4}},
                 out.data(),
                 in.data());
    EXPECT_THROW(out.values(), Fault);
}

__global__ void partly_written_kernel(float* out) {
    __shared__ float row[64];
    if (threadIdx.x < 63) row[threadIdx.x] = 1.0f;
    __syncthreads();
    out[threadIdx.x] = row[threadIdx.x];
}

TEST(CudaFaults, SharedMemoryThatNobodyWrote) {
    DeviceArray<float> out("out", 128);
    // A block that wrote it before does not help.
    expect_fault({"read of uninitialized shared memory",
                  "thread (63, 0, 0)",
                  "byte 252 of shared row of 256 bytes"},
                 partly_written_kernel,
                 {.grid = {2}, .block = {64}},
                 out.data());
}

__global__ void early_use_kernel(float* out, const float* in, bool wait_for_all) {
    __shared__ float staged[2][32];
    for (int stage = 0; stage < 2; ++stage) {
        __pipeline_memcpy_async(
            &staged[stage][threadIdx.x], in + stage * 32 + threadIdx.x, sizeof(float));
        __pipeline_commit();
    }
    __pipeline_wait_prior(wait_for_all ? 0 : 1);
    __syncthreads();
    out[threadIdx.x] = staged[0][threadIdx.x] + staged[1][31 - threadIdx.x];
}

TEST(CudaFaults, AsynchronousCopyUsedTooEarly) {
    DeviceArray<float> in("in", std::vector<float>(64, 2.0f)), out("out", 32);
    expect_fault({"read of uninitialized shared memory", "early_use_kernel"},
                 early_use_kernel,
                 {.grid = {1}, .block = {32}},
                 out.data(),
                 in.data(),
                 false);
    launch(early_use_kernel, {.grid = {1}, .block = {32}}, out.data(), in.data(), true);
    EXPECT_EQ(out.values(), std::vector<float>(32, 4.0f));
}

// --- Alignment ----------------------------------------------------------------------------------

__global__ void vector_load_kernel(float4* out, const float4* in) {
    out[threadIdx.x] = __ldg(in + threadIdx.x);
}

TEST(CudaFaults, MisalignedVector) {
    DeviceArray<float> in("in", std::vector<float>(8, 1.0f), 4), out("out", 8);
    expect_fault({"misaligned access",
                  "vector_load_kernel",
                  "float4",
                  "which needs an alignment of 16",
                  "byte 0 of in of 32 bytes"},
                 vector_load_kernel,
                 {.grid = {1}, .block = {1}},
                 reinterpret_cast<float4*>(out.data()),
                 reinterpret_cast<const float4*>(in.data()));
}

// --- Others -------------------------------------------------------------------------------------

__global__ void trap_kernel(int limit) {
    if (static_cast<int>(threadIdx.x) >= limit) __trap();
}

TEST(CudaFaults, Trap) {
    expect_fault({"trap", "thread (2, 0, 0)"}, trap_kernel, {.grid = {1}, .block = {3}}, 2);
}

TEST(CudaFaults, LineOfTheFault) {
    DeviceArray<float> in("in", std::vector<float>(64, 1.0f)), out("out", 1);
    const auto kernel = +[](float* target) {
        float* past = target + threadIdx.x;
        past[1] = 1.0f;
    };
    expect_fault({"test_cuda_faults.cpp:" + std::to_string(__LINE__ - 2)},
                 kernel,
                 {.grid = {1}, .block = {1}},
                 out.data());
}

TEST(CudaFaults, TheNextLaunchIsSound) {
    DeviceArray<float> in("in", std::vector<float>(64, 3.0f)), out("out", 64);
    EXPECT_THROW(
        launch(missing_barrier_kernel, {.grid = {1}, .block = {64}}, out.data(), in.data()), Fault);
    launch(copy_kernel, {.grid = {1}, .block = {64}}, out.data(), in.data());
    EXPECT_EQ(out.values(), std::vector<float>(64, 3.0f));
}

}  // namespace
}  // namespace megacore::cuda
