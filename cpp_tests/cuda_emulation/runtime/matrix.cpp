// ldmatrix and mma.sync.m16n8k16. The lanes meet twice: once to show where their operands are, and
// once more so that no lane changes its own while another reads them.
#include "cuda_emulation/matrix.h"

#include <array>
#include <cstring>

#include "cuda_emulation/small_float.h"
#include "runtime/fault.h"
#include "runtime/memory.h"
#include "runtime/warp.h"

namespace cuda_emulation {
namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kRowBytes = 16;

struct Operands {
    const std::uint32_t* a;
    const std::uint32_t* b;
};

void require_whole_warp(const Machine& m, Site site) {
    if (m.warps[m.running->linear / kLanes].existing == kAllLanes) return;
    fail("matrix instruction in a warp of less than 32 threads", "  at " + describe(site) + "\n");
}

template <class T>
const T* as_pointer(std::uint64_t value) {
    return reinterpret_cast<const T*>(static_cast<std::uintptr_t>(value));
}

double element(MatrixElement type, std::uint32_t packed, int half) {
    const std::uint32_t bits = packed >> (16 * half) & 0xffffu;
    return type == MatrixElement::kBFloat16 ? BFloat16Format::decode(bits)
                                            : HalfFormat::decode(bits);
}

}  // namespace

void load_matrices(
    std::uint32_t* registers, int count, bool transposed, const void* row, Site site) {
    const Inside inside;
    Machine& m = machine();
    require_whole_warp(m, site);
    const int lane = m.running->lane;
    if (lane < 8 * count) check_shared_row(m, row, kRowBytes, site);
    const int operation = static_cast<int>(WarpOperation::kLoadMatrix);
    const auto rows = meet(m, kAllLanes, operation, reinterpret_cast<std::uintptr_t>(row), site);
    std::array<std::uint32_t, 4> loaded{};
    for (int matrix = 0; matrix < count; ++matrix) {
        for (int half = 0; half < 2; ++half) {
            const int major = lane / 4;
            const int minor = 2 * (lane % 4) + half;
            const int row_index = transposed ? minor : major;
            const int column = transposed ? major : minor;
            std::uint16_t bits;
            std::memcpy(&bits,
                        as_pointer<std::byte>(rows[8 * matrix + row_index]) + 2 * column,
                        sizeof(bits));
            loaded[matrix] |= static_cast<std::uint32_t>(bits) << (16 * half);
        }
    }
    meet(m, kAllLanes, operation, 0, site);
    std::memcpy(registers, loaded.data(), count * sizeof(std::uint32_t));
}

void multiply_m16n8k16(MatrixElement type,
                       float (&d)[4],
                       const std::uint32_t (&a)[4],
                       const std::uint32_t (&b)[2],
                       const float (&c)[4],
                       Site site) {
    const Inside inside;
    Machine& m = machine();
    require_whole_warp(m, site);
    const Operands own{a, b};
    const int operation = static_cast<int>(WarpOperation::kMultiply);
    const auto lanes = meet(m, kAllLanes, operation, reinterpret_cast<std::uintptr_t>(&own), site);
    const int group = m.running->lane / 4;
    const int pair = m.running->lane % 4;
    std::array<float, 4> result;
    for (int i = 0; i < 4; ++i) {
        const int lower = i / 2;              // row is group + 8 lower
        const int column = 2 * pair + i % 2;  // of the 8
        double sum = c[i];
        for (int k = 0; k < 16; ++k) {
            const int owner = k % 8 / 2;
            const auto* of_a = as_pointer<Operands>(lanes[4 * group + owner]);
            const auto* of_b = as_pointer<Operands>(lanes[4 * column + owner]);
            sum += element(type, of_a->a[2 * (k / 8) + lower], k % 2) *
                   element(type, of_b->b[k / 8], k % 2);
        }
        result[i] = static_cast<float>(sum);
    }
    meet(m, kAllLanes, operation, 0, site);
    std::memcpy(d, result.data(), sizeof(d));
}

}  // namespace cuda_emulation
