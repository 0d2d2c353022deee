/// What tests say to the emulator: the order of things, the checks, and which memory is a GPU's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace cuda_emulation {

/// A kernel did something wrong. The message names the kernel, block, thread, address and line.
class Fault : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

struct Settings {
    /// Chooses the order of blocks, and which thread goes on whenever one stops.
    std::uint64_t seed = 0;
    /// Memory and barrier checks. They need the instrumented build of the kernels.
    bool checks = true;
    /// What num_multiprocessors() and cudaDeviceGetAttribute report; grids depend on it.
    int multiprocessors = 4;
};

/// The settings of later launches.
Settings& settings();

struct Counters {
    std::uint64_t launches = 0;
    std::uint64_t switches = 0;  ///< From one fiber to another.
    std::uint64_t accesses = 0;  ///< Loads and stores that were checked.
};
Counters& counters();

/// A piece of global memory: registered, between guard bytes, not initialized.
/// Elements lie `offset` bytes behind a 256-byte boundary.
class DeviceMemory {
public:
    DeviceMemory(std::string name, std::size_t bytes, std::size_t offset = 0);
    ~DeviceMemory();
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;

    std::byte* data() const { return data_; }
    std::size_t size() const { return size_; }

    void upload(const void* source, std::size_t bytes);
    /// Throws Fault where a byte was never written.
    void download(void* target, std::size_t bytes) const;

private:
    std::byte* storage_;
    std::byte* data_;
    std::size_t size_;
};

/// `count` elements of global memory.
template <class T>
class DeviceArray {
public:
    DeviceArray(std::string name, std::size_t count, std::size_t offset = 0)
        : memory_(std::move(name), count * sizeof(T), offset) {}
    DeviceArray(std::string name, const std::vector<T>& values, std::size_t offset = 0)
        : DeviceArray(std::move(name), values.size(), offset) {
        memory_.upload(values.data(), values.size() * sizeof(T));
    }

    T* data() const { return reinterpret_cast<T*>(memory_.data()); }
    std::size_t size() const { return memory_.size() / sizeof(T); }

    std::vector<T> values() const {
        std::vector<T> copy(size());
        memory_.download(copy.data(), memory_.size());
        return copy;
    }

private:
    DeviceMemory memory_;
};

}  // namespace cuda_emulation
