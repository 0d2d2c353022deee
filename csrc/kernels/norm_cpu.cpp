// CPU kernels of norm.h, compiled once per instruction set.
//
// A row is read three times (sum, squares, output), once from memory and then from the first-level
// cache. Rows are independent in forward. In backward a chunk of rows adds its weight and bias
// gradients into one partial row of the workspace; a second loop adds the partial rows in order.
// Bound by memory: forward moves 2 elements per element of x, backward 3.
#include "kernels/norm_cpu.h"

#include "core/math.h"
#include "core/parallel_for.h"
#include "kernels/simd.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

// Work below this many elements is not worth waking another thread.
constexpr std::int64_t kGrainElements = 16384;

std::int64_t grain_rows(std::int64_t hidden) {
    return hidden >= kGrainElements ? 1 : kGrainElements / hidden;
}

template <class X>
float row_mean(const X* x, std::int64_t hidden) {
    // Four independent sums hide the latency of the addition, and shorten the chain of roundings.
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    constexpr int kStep = 4 * Vec::kWidth;
    std::int64_t i = 0;
    for (; i + kStep <= hidden; i += kStep) {
        for (int k = 0; k < 4; ++k) sums[k] = sums[k] + Vec::load(x + i + k * Vec::kWidth);
    }
    float tail = 0.0f;
    for (; i < hidden; ++i) tail += to_float(x[i]);
    return (((sums[0] + sums[1]) + (sums[2] + sums[3])).sum() + tail) / static_cast<float>(hidden);
}

// Mean of (x - center)^2.
template <class X>
float row_mean_square(const X* x, float center, std::int64_t hidden) {
    const Vec c = Vec::broadcast(center);
    Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    constexpr int kStep = 4 * Vec::kWidth;
    std::int64_t i = 0;
    for (; i + kStep <= hidden; i += kStep) {
        for (int k = 0; k < 4; ++k) {
            const Vec d = Vec::load(x + i + k * Vec::kWidth) - c;
            sums[k] = Vec::fma(d, d, sums[k]);
        }
    }
    float tail = 0.0f;
    for (; i < hidden; ++i) {
        const float d = to_float(x[i]) - center;
        tail += d * d;
    }
    return (((sums[0] + sums[1]) + (sums[2] + sums[3])).sum() + tail) / static_cast<float>(hidden);
}

template <class X, class W>
void forward_rows(const NormForward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t hidden = args.x.sizes[1];
    const W* weight = args.weight.as<const W>();
    const W* bias = args.bias.as<const W>();
    const Vec shift = Vec::broadcast(args.zero_centered ? 1.0f : 0.0f);
    for (std::int64_t row = begin; row < end; ++row) {
        const X* x = args.x.as<const X>() + row * hidden;
        X* out = args.out.as<X>() + row * hidden;
        const float mean = args.mean.present() ? row_mean(x, hidden) : 0.0f;
        const float rstd = 1.0f / __builtin_sqrtf(row_mean_square(x, mean, hidden) + args.eps);
        const Vec m = Vec::broadcast(mean);
        const Vec r = Vec::broadcast(rstd);
        if (bias != nullptr) {
            for_each_vec(hidden, [&](auto load, auto store) {
                store(out, Vec::fma((load(x) - m) * r, load(weight) + shift, load(bias)));
            });
        } else {
            for_each_vec(hidden, [&](auto load, auto store) {
                store(out, (load(x) - m) * r * (load(weight) + shift));
            });
        }
        if (args.mean.present()) args.mean.as<float>()[row] = mean;
        args.rstd.as<float>()[row] = rstd;
    }
}

// One row of backward. Adds into dweight_sum and dbias_sum [H].
//   xhat = (x - mean) * rstd,  g = dout * w
//   dx = rstd * (g - xhat * mean(g * xhat) - mean(g)); the last term is for LayerNorm only
template <bool kLayerNorm, class X, class W>
void backward_row(const NormBackward& args,
                  std::int64_t row,
                  float* dweight_sum,
                  float* dbias_sum) {
    const std::int64_t hidden = args.x.sizes[1];
    const X* x = args.x.as<const X>() + row * hidden;
    const X* dout = args.dout.as<const X>() + row * hidden;
    X* dx = args.dx.as<X>() + row * hidden;
    const W* weight = args.weight.as<const W>();
    const Vec shift = Vec::broadcast(args.zero_centered ? 1.0f : 0.0f);
    const Vec mean = Vec::broadcast(kLayerNorm ? args.mean.as<const float>()[row] : 0.0f);
    const float rstd_scalar = args.rstd.as<const float>()[row];
    const Vec rstd = Vec::broadcast(rstd_scalar);

    Vec sum_g = Vec::zero();
    Vec sum_gx = Vec::zero();
    for_each_vec(hidden, [&](auto load, auto store) {
        const Vec dy = load(dout);
        const Vec xhat = (load(x) - mean) * rstd;
        const Vec g = dy * (load(weight) + shift);
        sum_gx = Vec::fma(g, xhat, sum_gx);
        store(dweight_sum, Vec::fma(dy, xhat, load(dweight_sum)));
        if constexpr (kLayerNorm) {
            sum_g = sum_g + g;
            store(dbias_sum, load(dbias_sum) + dy);
        }
    });
    const float scale = 1.0f / static_cast<float>(hidden);
    const Vec mean_gx = Vec::broadcast(sum_gx.sum() * scale);
    const Vec mean_g = Vec::broadcast(sum_g.sum() * scale);
    for_each_vec(hidden, [&](auto load, auto store) {
        const Vec xhat = (load(x) - mean) * rstd;
        const Vec g = load(dout) * (load(weight) + shift);
        store(dx, ((g - xhat * mean_gx) - mean_g) * rstd);
    });
}

template <class X, class W>
void backward_chunks(const NormBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t num_rows = args.x.sizes[0];
    const std::int64_t hidden = args.x.sizes[1];
    const std::int64_t rows_per_chunk = norm_backward_rows_per_chunk(num_rows);
    for (std::int64_t chunk = begin; chunk < end; ++chunk) {
        float* dweight_sum = args.workspace.as<float>() + 2 * chunk * hidden;
        float* dbias_sum = dweight_sum + hidden;
        std::memset(dweight_sum, 0, static_cast<std::size_t>(2 * hidden) * sizeof(float));
        const std::int64_t first = chunk * rows_per_chunk;
        const std::int64_t last =
            first + rows_per_chunk < num_rows ? first + rows_per_chunk : num_rows;
        for (std::int64_t row = first; row < last; ++row) {
            if (args.mean.present()) {
                backward_row<true, X, W>(args, row, dweight_sum, dbias_sum);
            } else {
                backward_row<false, X, W>(args, row, dweight_sum, dbias_sum);
            }
        }
    }
}

// Adds the partial rows for columns [begin, end), chunk by chunk.
template <class W>
void reduce_columns(const NormBackward& args, std::int64_t begin, std::int64_t end) {
    const std::int64_t hidden = args.x.sizes[1];
    const std::int64_t num_chunks = norm_backward_chunks(args.x.sizes[0]);
    const float* partial = args.workspace.as<const float>();
    const auto reduce = [&](W* target, std::int64_t offset) {
        for_each_vec(end - begin, [&](auto load, auto store) {
            Vec sum = Vec::zero();
            for (std::int64_t chunk = 0; chunk < num_chunks; ++chunk) {
                sum = sum + load(partial + (2 * chunk + offset) * hidden + begin);
            }
            store(target + begin, sum);
        });
    };
    reduce(args.dweight.as<W>(), 0);
    if (args.dbias.present()) reduce(args.dbias.as<W>(), 1);
}

void forward(const NormForward& args) {
    visit_norm_dtypes(args.x.dtype, args.weight.dtype, [&](auto x_tag, auto weight_tag) {
        using X = typename decltype(x_tag)::type;
        using W = typename decltype(weight_tag)::type;
        parallel_for(
            0,
            args.x.sizes[0],
            grain_rows(args.x.sizes[1]),
            [&](std::int64_t begin, std::int64_t end) { forward_rows<X, W>(args, begin, end); });
    });
}

void backward(const NormBackward& args) {
    const std::int64_t hidden = args.x.sizes[1];
    visit_norm_dtypes(args.x.dtype, args.weight.dtype, [&](auto x_tag, auto weight_tag) {
        using X = typename decltype(x_tag)::type;
        using W = typename decltype(weight_tag)::type;
        parallel_for(
            0, norm_backward_chunks(args.x.sizes[0]), 1, [&](std::int64_t begin, std::int64_t end) {
                backward_chunks<X, W>(args, begin, end);
            });
        // Columns are cut at multiples of 64, so that two threads never share a cache line.
        constexpr std::int64_t kColumns = 64;
        parallel_for(0, ceil_div(hidden, kColumns), 16, [&](std::int64_t begin, std::int64_t end) {
            const std::int64_t last = end * kColumns < hidden ? end * kColumns : hidden;
            reduce_columns<W>(args, begin * kColumns, last);
        });
    });
}

}  // namespace

extern const NormKernels norm_kernels;
const NormKernels norm_kernels{forward, backward};

}  // namespace megacore::cpu::MEGACORE_ISA
