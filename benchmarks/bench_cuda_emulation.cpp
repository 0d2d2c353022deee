// Fiber switches per second of the CUDA emulation, checkers off.
//
//   make build && build/cmake/cpp_tests/bench_cuda_emulation
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "kernels/launch.h"
#include "runtime/context.h"
#include "runtime/emulator.h"

namespace {

__global__ void barriers_kernel(int rounds, int* sink) {
    int sum = 0;
    for (int round = 0; round < rounds; ++round) {
        sum += round ^ static_cast<int>(threadIdx.x);
        __syncthreads();
    }
    sink[threadIdx.x] = sum;
}

__global__ void shuffles_kernel(int rounds, int* sink) {
    int sum = static_cast<int>(threadIdx.x);
    for (int round = 0; round < rounds; ++round) sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sink[threadIdx.x] = sum;
}

// Median over five runs, in millions of switches per second.
double measure(void (*kernel)(int, int*), unsigned threads, int rounds) {
    std::vector<int> sink(threads);
    std::vector<double> rates;
    for (int run = 0; run < 5; ++run) {
        const auto before = cuda_emulation::counters().switches;
        const auto start = std::chrono::steady_clock::now();
        megacore::cuda::launch(kernel, {.grid = {1}, .block = {threads}}, rounds, sink.data());
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        const auto switches = cuda_emulation::counters().switches - before;
        rates.push_back(static_cast<double>(switches) / seconds.count() * 1e-6);
    }
    std::sort(rates.begin(), rates.end());
    return rates[rates.size() / 2];
}

}  // namespace

int main() {
    cuda_emulation::settings().checks = false;
    std::printf("fibers by %s, million switches per second\n", cuda_emulation::context_backend());
    for (const unsigned threads : {32u, 128u, 256u, 1024u}) {
        const int rounds = static_cast<int>(4'000'000u / threads);
        std::printf("%5u threads: __syncthreads %6.1f, __shfl_xor_sync %6.1f\n",
                    threads,
                    measure(barriers_kernel, threads, rounds),
                    measure(shuffles_kernel, threads, rounds));
    }
    return 0;
}
