// The forward CUDA kernel of attention.h, in the form of FlashAttention-2.
//
// A block owns 64 rows of a sequence and a group, a warp 16 of them, and goes over the keys in
// tiles that are copied two deep (cp.async). Scores stay in registers and become, rounded, the left
// factor of the product with the values. When there are few rows and many keys, as in generation,
// blockIdx.z takes a part of the keys each; the parts are put together by a second kernel.
#include <algorithm>

#include "kernels/attention.h"
#include "kernels/attention_backward.cuh"
#include "kernels/attention_tiles.cuh"
#include "kernels/reduce.cuh"

namespace megacore::cuda {
namespace {

constexpr std::int64_t kPartKeys = 512;
constexpr std::int64_t kMaxParts = 32;

template <class T>
struct Params {
    AttentionShape shape;
    Rows<T> out;
    float* log_sum;
    Rows<const T> q;
    Rows<const T> k;
    Rows<const T> v;
    float* parts_out;      // [pairs, parts, rows, D], or null for one part
    float* parts_log_sum;  // [pairs, parts, rows]
    std::int64_t part_keys;
};

template <int kHead>
constexpr int kTileKeys = kHead > 128 ? 32 : 64;

template <class T, int kHead>
constexpr std::size_t shared_bytes() {
    return sizeof(T) * (kAttentionRows + 4 * kTileKeys<kHead>)*(kHead + 8);
}

// Grid: blocks of rows, sequences times groups, parts of the keys.
template <class T, int kHead>
__global__ void __launch_bounds__(kAttentionThreads) attention_forward_kernel(const Params<T> p) {
    constexpr int kKeys = kTileKeys<kHead>;
    extern __shared__ __align__(16) unsigned char attention_shared[];
    T* const memory = reinterpret_cast<T*>(attention_shared);
    using KeyTile = Tile<T, kKeys, kHead>;
    const Tile<T, kAttentionRows, kHead> queries{memory};
    const auto stage = [&](int number, int which) {
        const int place = number % 2 * 2 + which;
        return KeyTile{memory + kAttentionRows * KeyTile::kStride + place * KeyTile::kElements};
    };
    const AttentionShape& shape = p.shape;
    const std::int64_t pair = blockIdx.y;
    const std::int64_t batch = pair / shape.groups;
    const std::int64_t group = pair % shape.groups;
    // Late blocks of causal rows are long: they start first.
    const std::int64_t block = gridDim.x - 1 - blockIdx.x;
    const std::int64_t first_row = block * kAttentionRows;
    const Rows<const T> keys = p.k.group(batch, group);
    const Rows<const T> values = p.v.group(batch, group);
    const std::int64_t last_row = min(first_row + kAttentionRows, shape.rows) - 1;
    const IndexRange first_seen = shape.keys_of(batch, first_row);
    const IndexRange last_seen = shape.keys_of(batch, last_row);
    // What rows see grows with the row, so the first and the last row bound all.
    const std::int64_t part = static_cast<std::int64_t>(blockIdx.z) * p.part_keys;
    const std::int64_t begin = max(first_seen.begin, part);
    const std::int64_t end = max(begin, min(last_seen.end, part + p.part_keys));
    const int tiles = static_cast<int>((end - begin + kKeys - 1) / kKeys);
    const auto fetch = [&](int tile) {
        if (tile < tiles) {
            const std::int64_t at = begin + std::int64_t{kKeys} * tile;
            stage(tile, 0).fetch(keys, at, end, 1, shape.head, shape.vectors);
            stage(tile, 1).fetch(values, at, end, 1, shape.head, shape.vectors);
        }
        __pipeline_commit();
    };
    queries.fetch(
        p.q.group(batch, group), first_row, shape.rows, shape.ratio, shape.head, shape.vectors);
    fetch(0);
    fetch(1);

    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
    const std::int64_t own_row = first_row + warp_row + lane / 4;
    const NearRange seen[2] = {NearRange::of(shape.keys_of(batch, own_row), begin, end),
                               NearRange::of(shape.keys_of(batch, own_row + 8), begin, end)};
    const float to_log2 = shape.scale * kLog2E;
    float out[kHead / 8][4] = {};
    float largest[2] = {-INFINITY, -INFINITY};
    float total[2] = {0.0f, 0.0f};
    for (int tile = 0; tile < tiles; ++tile) {
        __pipeline_wait_prior(1);
        __syncthreads();  // the tile is there for all warps
        float scores[kKeys / 8][4];
        multiply_transposed<T, kHead>(scores, queries, warp_row, stage(tile, 0));
        const int first_key = tile * kKeys;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float found = largest[half];
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& score = scores[n][2 * half + i];
                    const int key = first_key + 8 * n + lane % 4 * 2 + i;
                    score = seen[half].has(key) ? score * to_log2 : -INFINITY;
                    found = fmaxf(found, score);
                }
            }
            // The four lanes of a row.
            found = fmaxf(found, __shfl_xor_sync(0xffffffffu, found, 1));
            found = fmaxf(found, __shfl_xor_sync(0xffffffffu, found, 2));
            const float shift = found == -INFINITY ? 0.0f : found;
            const float shrink = exp2f(largest[half] - shift);
            largest[half] = found;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    float& weight = scores[n][2 * half + i];
                    weight = exp2f(weight - shift);
                    sum += weight;
                    if (shape.drops) {
                        const int key = first_key + 8 * n + lane % 4 * 2 + i;
                        weight *= shape.keep(pair, own_row + 8 * half, begin + key);
                    }
                }
            }
            total[half] = total[half] * shrink + sum;
#pragma unroll
            for (int d = 0; d < kHead / 8; ++d) {
                out[d][2 * half] *= shrink;
                out[d][2 * half + 1] *= shrink;
            }
        }
        multiply_rows<T, kHead>(out, scores, stage(tile, 1));
        __syncthreads();  // the tile's memory is free
        fetch(tile + 2);
    }

    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 1);
        total[half] += __shfl_xor_sync(0xffffffffu, total[half], 2);
        factors[half] = total[half] == 0.0f ? 0.0f : 1.0f / total[half];
        const std::int64_t row = own_row + 8 * half;
        if (row >= shape.rows || lane % 4 != 0) continue;
        const float log_sum = largest[half] * kLn2 + logf(total[half]);
        if (p.parts_out == nullptr) {
            p.log_sum[shape.number_of(pair, row)] = log_sum;
        } else {
            p.parts_log_sum[(pair * gridDim.z + blockIdx.z) * shape.rows + row] = log_sum;
        }
    }
    const std::int64_t warp_first = first_row + warp_row;
    if (p.parts_out == nullptr) {
        store_rows<T, kHead>(p.out.group(batch, group),
                             out,
                             warp_first,
                             shape.rows,
                             shape.ratio,
                             shape.head,
                             factors);
    } else {
        Rows<float> target{};
        target.data = p.parts_out + (pair * gridDim.z + blockIdx.z) * shape.rows * shape.head;
        target.token_stride = shape.head;
        store_rows<float, kHead>(target, out, warp_first, shape.rows, 1, shape.head, factors);
    }
}

// Puts the parts of a row together. Grid: rows, sequences times groups.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads)
    attention_join_kernel(const Params<T> p, int parts) {
    const AttentionShape& shape = p.shape;
    const std::int64_t pair = blockIdx.y;
    const std::int64_t row = blockIdx.x;
    const float* const sums = p.parts_log_sum + pair * parts * shape.rows + row;
    float largest = -INFINITY;
    for (int part = 0; part < parts; ++part) largest = fmaxf(largest, sums[part * shape.rows]);
    const float shift = largest == -INFINITY ? 0.0f : largest;
    float total = 0.0f;
    for (int part = 0; part < parts; ++part) total += expf(sums[part * shape.rows] - shift);
    if (threadIdx.x == 0) p.log_sum[shape.number_of(pair, row)] = largest + logf(total);
    const float factor = total == 0.0f ? 0.0f : 1.0f / total;
    const Rows<T> target = p.out.group(pair / shape.groups, pair % shape.groups);
    T* const out = target.at(row / shape.ratio, row % shape.ratio);
    for (int d = static_cast<int>(threadIdx.x); d < shape.head; d += kAttentionThreads) {
        float sum = 0.0f;
        for (int part = 0; part < parts; ++part) {
            const std::int64_t at = (pair * parts + part) * shape.rows + row;
            const float weight = expf(sums[part * shape.rows] - shift) * factor;
            sum = fmaf(weight, p.parts_out[at * shape.head + d], sum);
        }
        out[d] = narrow<T>(sum);
    }
}

// How many parts the keys are cut into: a function of the shape alone.
std::int64_t num_parts(const AttentionForward& args) {
    const std::int64_t rows = args.q.sizes[1] * args.q.sizes[3];
    if (rows > kAttentionRows) return 1;
    return std::clamp<std::int64_t>(ceil_div(args.k.sizes[1], kPartKeys), 1, kMaxParts);
}

template <class T, int kHead>
void launch_forward(const AttentionForward& args, void* stream) {
    Params<T> params{.shape = AttentionShape::of(args.q, args.k, args.rule),
                     .out = Rows<T>::of(args.out),
                     .log_sum = args.log_sum.as<float>(),
                     .q = Rows<const T>::of(args.q),
                     .k = Rows<const T>::of(args.k),
                     .v = Rows<const T>::of(args.v)};
    params.shape.vectors &= params.q.vectors() && params.k.vectors() && params.v.vectors();
    const std::int64_t pairs = args.q.sizes[0] * args.q.sizes[2];
    const std::int64_t rows = params.shape.rows;
    const std::int64_t parts = num_parts(args);
    MEGACORE_CHECK(
        pairs <= 65535, "attention: at most 65535 sequences times groups, found ", pairs);
    params.part_keys = std::max<std::int64_t>(1, ceil_div(args.k.sizes[1], parts));
    if (parts > 1) {
        params.parts_out = args.workspace.as<float>();
        params.parts_log_sum = params.parts_out + pairs * parts * rows * args.q.sizes[4];
    }
    LaunchShape shape{.grid = dim3(static_cast<unsigned>(ceil_div(rows, kAttentionRows)),
                                   static_cast<unsigned>(pairs),
                                   static_cast<unsigned>(parts)),
                      .block = dim3(kAttentionThreads),
                      .shared_bytes = shared_bytes<T, kHead>(),
                      .stream = stream};
    launch_large(attention_forward_kernel<T, kHead>, shape, params);
    if (parts == 1) return;
    shape.grid = dim3(static_cast<unsigned>(rows), static_cast<unsigned>(pairs));
    shape.shared_bytes = 0;
    launch(attention_join_kernel<T>, shape, params, static_cast<int>(parts));
}

}  // namespace

// --- Entry points -------------------------------------------------------------------------------

std::int64_t attention_forward_workspace(const AttentionForward& args) {
    const std::int64_t parts = num_parts(args);
    const auto& sizes = args.q.sizes;
    return parts == 1 ? 0 : parts * sizes[0] * sizes[1] * sizes[2] * sizes[3] * (sizes[4] + 1);
}

void attention_forward(const AttentionForward& args, void* stream) {
    check(args);
    if (args.q.numel() == 0) return;
    dispatch_attention(args.q.dtype, args.q.sizes[4], [&](auto tag, auto head) {
        launch_forward<typename decltype(tag)::type, head()>(args, stream);
    });
}

std::int64_t attention_backward_workspace(const AttentionBackward& args) {
    return args.log_sum.numel();
}

void attention_backward(const AttentionBackward& args, void* stream) {
    check(args);
    if (args.q.numel() == 0 && args.k.numel() == 0) return;
    dispatch_attention(args.q.dtype, args.q.sizes[4], [&](auto tag, auto head) {
        attention_backward_kernels::launch_backward<typename decltype(tag)::type, head()>(args,
                                                                                          stream);
    });
}

}  // namespace megacore::cuda
