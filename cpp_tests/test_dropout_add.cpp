// kernels/dropout_add: every compiled instruction set against the definition.
#include "core/parallel_for.h"
#include "kernels/dropout_add.h"
#include "kernels/philox.h"
#include "support.h"

namespace megacore {
namespace {

using testing::Buffer;
using testing::expect_close;
using testing::expect_error;
using testing::IsaScope;
using testing::rounding_error;
using testing::runnable_isas;

TEST(Philox, KnownAnswers) {
    // Random123, kat_vectors: philox4x32 with 10 rounds; a counter of zeros, a key of zeros.
    const Philox zero = Philox::at(0, 0);
    EXPECT_EQ(zero.words[0], 0x6627e8d5u);
    EXPECT_EQ(zero.words[1], 0xe169c58du);
    EXPECT_EQ(zero.words[2], 0xbc57ac4cu);
    EXPECT_EQ(zero.words[3], 0x9b00dbd8u);
}

template <class T>
void check_all_cases() {
    for (const Isa isa : runnable_isas()) {
        const IsaScope scope(isa);
        for (const std::int64_t count : {1, 3, 1024, 5003}) {
            for (const bool with_residual : {false, true}) {
                Buffer<T> x("x", {count}), residual("residual", {count}), out("out", {count});
                x.fill_normal(1);
                residual.fill_normal(2);
                DropoutAdd args{.out = out.tensor, .x = x.tensor, .drop = 0.25, .seed = 77};
                if (with_residual) args.residual = residual.tensor;
                cpu::dropout_add(args);
                std::vector<double> expected, bounds;
                for (std::int64_t i = 0; i < count; ++i) {
                    const Philox philox = Philox::at(77, static_cast<std::uint64_t>(i / 4));
                    const bool kept = philox.words[i % 4] >> 8 >= 1u << 22;
                    const double part = kept ? x.at(i) / 0.75 : 0.0;
                    const double value = part + (with_residual ? residual.at(i) : 0.0);
                    expected.push_back(value);
                    bounds.push_back(rounding_error<T>(value) + 3 * 0x1p-24 * std::abs(part));
                }
                SCOPED_TRACE(::testing::Message() << name_of(isa) << " [" << count << "]");
                expect_close(out, expected, bounds);
            }
        }
    }
}

TEST(DropoutAdd, Float32) { check_all_cases<float>(); }
TEST(DropoutAdd, BFloat16) { check_all_cases<BFloat16>(); }
TEST(DropoutAdd, Float16) { check_all_cases<Float16>(); }

TEST(DropoutAdd, Faults) {
    Buffer<float> x("x", {4}), out("out", {4}), wrong("residual", {3});
    DropoutAdd args{.out = out.tensor, .x = x.tensor, .drop = -0.1};
    expect_error([&] { cpu::dropout_add(args); }, "drop: expected a probability");
    args.drop = 0.1;
    args.residual = wrong.tensor;
    expect_error([&] { cpu::dropout_add(args); }, "expected shape [4], found residual");
}

}  // namespace
}  // namespace megacore
