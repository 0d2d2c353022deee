// The host's calls: launch, errors, device attributes.
#include "cuda_emulation/runtime_api.h"

#include <cstdio>
#include <map>

#include "runtime/emulator.h"
#include "runtime/machine.h"

namespace cuda_emulation {

void run_grid(const cudaLaunchConfig_t& config,
              const void* kernel,
              const std::function<void()>& body);

namespace {

constexpr std::size_t kSharedDefault = 48 * 1024;
constexpr std::size_t kSharedOptIn = 227 * 1024;

cudaError_t last_error = cudaSuccess;
std::map<const void*, std::size_t> shared_limits;  // raised by cudaFuncSetAttribute

bool fits(const dim3& size, std::uint64_t x, std::uint64_t y, std::uint64_t z) {
    return size.x >= 1 && size.y >= 1 && size.z >= 1 && size.x <= x && size.y <= y && size.z <= z;
}

}  // namespace

cudaError_t refuse(cudaError_t error, const std::string& reason) {
    std::fprintf(stderr, "cuda emulation: %s: %s\n", cudaGetErrorName(error), reason.c_str());
    last_error = error;
    return error;
}

cudaError_t launch(const cudaLaunchConfig_t& config,
                   const void* kernel,
                   const std::function<void()>& body) {
    for (unsigned i = 0; i < config.numAttrs; ++i) {
        const cudaLaunchAttribute& attribute = config.attrs[i];
        if (attribute.id == cudaLaunchAttributeCooperative && attribute.val.cooperative) {
            return refuse(cudaErrorNotSupported,
                          "cooperative launch: blocks run one after another and cannot meet");
        }
        if (attribute.id == cudaLaunchAttributeClusterDimension) {
            return refuse(cudaErrorNotSupported, "thread block clusters are not emulated");
        }
    }
    if (!fits(config.gridDim, 0x7fffffffu, 65535, 65535)) {
        return refuse(cudaErrorInvalidConfiguration, "grid of a size that no device takes");
    }
    const dim3& block = config.blockDim;
    if (!fits(block, 1024, 1024, 64) || std::uint64_t{block.x} * block.y * block.z > kMaxThreads) {
        return refuse(cudaErrorInvalidConfiguration,
                      "block of " + std::to_string(block.x) + " x " + std::to_string(block.y) +
                          " x " + std::to_string(block.z) + " threads");
    }
    const auto raised = shared_limits.find(kernel);
    const std::size_t limit = raised == shared_limits.end() ? kSharedDefault : raised->second;
    if (config.dynamicSmemBytes > limit) {
        return refuse(cudaErrorInvalidValue,
                      std::to_string(config.dynamicSmemBytes) +
                          " bytes of dynamic shared memory, the limit of this kernel is " +
                          std::to_string(limit));
    }
    run_grid(config, kernel, body);
    return cudaSuccess;
}

cudaError_t set_function_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) {
        if (value < 0 || static_cast<std::size_t>(value) > kSharedOptIn) {
            return refuse(cudaErrorInvalidValue,
                          "more dynamic shared memory than a block can have");
        }
        shared_limits[kernel] = static_cast<std::size_t>(value);
    }
    return cudaSuccess;
}

}  // namespace cuda_emulation

cudaError_t cudaGetLastError() { return std::exchange(cuda_emulation::last_error, cudaSuccess); }
cudaError_t cudaPeekAtLastError() { return cuda_emulation::last_error; }

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "cudaSuccess";
        case cudaErrorInvalidValue:
            return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation:
            return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration:
            return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice:
            return "cudaErrorInvalidDevice";
        case cudaErrorNotSupported:
            return "cudaErrorNotSupported";
    }
    return "unrecognized error code";
}

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess:
            return "no error";
        case cudaErrorInvalidValue:
            return "invalid argument";
        case cudaErrorMemoryAllocation:
            return "out of memory";
        case cudaErrorInvalidConfiguration:
            return "invalid configuration argument";
        case cudaErrorInvalidDevice:
            return "invalid device ordinal";
        case cudaErrorNotSupported:
            return "operation not supported";
    }
    return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
    if (device == 0) return cudaSuccess;
    return cuda_emulation::refuse(cudaErrorInvalidDevice, "there is one emulated device");
}

cudaError_t cudaGetDeviceCount(int* count) {
    *count = 1;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
    if (device != 0) return cudaSetDevice(device);
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock:
            *value = cuda_emulation::kMaxThreads;
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlock:
            *value = static_cast<int>(cuda_emulation::kSharedDefault);
            return cudaSuccess;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin:
            *value = static_cast<int>(cuda_emulation::kSharedOptIn);
            return cudaSuccess;
        case cudaDevAttrWarpSize:
            *value = cuda_emulation::kLanes;
            return cudaSuccess;
        case cudaDevAttrMultiProcessorCount:
            *value = cuda_emulation::settings().multiprocessors;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMajor:
            *value = 8;
            return cudaSuccess;
        case cudaDevAttrComputeCapabilityMinor:
        case cudaDevAttrCooperativeLaunch:
            *value = 0;
            return cudaSuccess;
    }
    return cuda_emulation::refuse(cudaErrorInvalidValue, "a device attribute not emulated");
}

cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

cudaError_t cudaLaunchCooperativeKernel(
    const void*, dim3, dim3, void**, std::size_t, cudaStream_t) {
    return cuda_emulation::refuse(
        cudaErrorNotSupported, "cooperative launch: blocks run one after another and cannot meet");
}
