// Global memory of tests and of cudaMalloc.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>

#include "cuda_emulation/runtime_api.h"
#include "runtime/emulator.h"
#include "runtime/memory.h"

namespace cuda_emulation {
namespace {

constexpr std::size_t kGuardBytes = 256;  // on both sides, part of no allocation
constexpr int kPoison = 0xff;

std::map<void*, std::unique_ptr<DeviceMemory>> allocated;  // by cudaMalloc

}  // namespace

DeviceMemory::DeviceMemory(std::string name, std::size_t bytes, std::size_t offset) : size_(bytes) {
    const std::size_t total = bytes + offset + 2 * kGuardBytes;
    storage_ = static_cast<std::byte*>(
        std::aligned_alloc(kGuardBytes, (total + kGuardBytes - 1) / kGuardBytes * kGuardBytes));
    if (storage_ == nullptr) throw std::bad_alloc();
    std::memset(storage_, kPoison, total);
    data_ = storage_ + kGuardBytes + offset;
    register_memory(data_, size_, name);
}

DeviceMemory::~DeviceMemory() {
    unregister_memory(data_);
    std::free(storage_);
}

void DeviceMemory::upload(const void* source, std::size_t bytes) {
    if (bytes > size_) throw Fault("upload of more bytes than the allocation has");
    if (bytes == 0) return;
    std::memcpy(data_, source, bytes);
    mark_initialized(data_, bytes);
}

void DeviceMemory::download(void* target, std::size_t bytes) const {
    if (bytes > size_) throw Fault("download of more bytes than the allocation has");
    if (bytes == 0) return;
    const std::size_t unset = settings().checks ? first_uninitialized(data_, bytes) : bytes;
    if (unset < bytes) {
        throw Fault("download of bytes that no kernel wrote: byte " + std::to_string(unset) +
                    " of " + std::to_string(bytes));
    }
    std::memcpy(target, data_, bytes);
}

}  // namespace cuda_emulation

cudaError_t cudaMalloc(void** pointer, std::size_t bytes) {
    using cuda_emulation::allocated;
    auto memory = std::make_unique<cuda_emulation::DeviceMemory>("a cudaMalloc", bytes);
    *pointer = memory->data();
    allocated[*pointer] = std::move(memory);
    return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
    if (pointer == nullptr) return cudaSuccess;
    if (cuda_emulation::allocated.erase(pointer) == 1) return cudaSuccess;
    return cuda_emulation::refuse(cudaErrorInvalidValue, "cudaFree of a pointer not allocated");
}

cudaError_t cudaMemcpy(void* target, const void* source, std::size_t bytes, cudaMemcpyKind) {
    if (bytes == 0) return cudaSuccess;
    std::memcpy(target, source, bytes);
    cuda_emulation::mark_initialized(static_cast<std::byte*>(target), bytes);
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(
    void* target, const void* source, std::size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
    return cudaMemcpy(target, source, bytes, kind);
}

cudaError_t cudaMemset(void* target, int value, std::size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    std::memset(target, value, bytes);
    cuda_emulation::mark_initialized(static_cast<std::byte*>(target), bytes);
    return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* target, int value, std::size_t bytes, cudaStream_t) {
    return cudaMemset(target, value, bytes);
}
