/// The backward CUDA kernels of attention.h, in the form of FlashAttention-2 without its atomics.
///
/// Three kernels: the products of output and output gradient of every row; gradients of keys and
/// values, a block owning 64 keys and going over the rows that see them; gradients of queries, a
/// block owning 64 rows and going over their keys. Both compute scores again. Every sum has one
/// owner and one order. Heads of more than 128 elements take keys and values one after the other,
/// for their sums would not fit into the registers together. Included by attention.cu only.
#pragma once

#include <cstdint>

#include "kernels/attention.h"
#include "kernels/attention_tiles.cuh"
#include "kernels/reduce.cuh"

namespace megacore::cuda::attention_backward_kernels {

constexpr int kKeys = 64;       // of a block of keys: 16 a warp
constexpr int kRowTile = 32;    // rows at a time
constexpr int kQueryKeys = 32;  // keys at a time

template <class T>
struct Params {
    AttentionShape shape;
    Rows<T> dq;
    Rows<T> dk;
    Rows<T> dv;
    Rows<const T> dout;
    Rows<const T> q;
    Rows<const T> k;
    Rows<const T> v;
    Rows<const T> out;
    const float* log_sum;  // [B, Sq, G, R]
    float* deltas;         // [B, Sq, G, R]
};

// deltas[row] = sum over d of dout * out. A warp owns a row. Grid: four rows, sequences times
// groups.
template <class T>
__global__ void __launch_bounds__(kAttentionThreads) attention_delta_kernel(const Params<T> p) {
    const std::int64_t pair = blockIdx.y;
    const std::int64_t row =
        static_cast<std::int64_t>(blockIdx.x) * (kAttentionThreads / 32) + threadIdx.x / 32;
    if (row >= p.shape.rows) return;
    const std::int64_t batch = pair / p.shape.groups;
    const std::int64_t group = pair % p.shape.groups;
    const std::int64_t token = row / p.shape.ratio;
    const std::int64_t head = row % p.shape.ratio;
    const T* const dout = p.dout.group(batch, group).at(token, head);
    const T* const out = p.out.group(batch, group).at(token, head);
    float sum = 0.0f;
    for (int d = static_cast<int>(threadIdx.x) % 32; d < p.shape.head; d += 32) {
        sum = fmaf(widen(dout[d]), widen(out[d]), sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) p.deltas[p.shape.number_of(pair, row)] = sum;
}

// A weight and the gradient of its score but for the scale, from the score and the product of
// output gradient and value.
struct Slope {
    float weight;  // after dropout
    float step;
};

template <class T>
__device__ __forceinline__ Slope slope(const Params<T>& p,
                                       std::int64_t pair,
                                       std::int64_t row,
                                       std::int64_t key,
                                       float score,
                                       float product,
                                       float log_sum,
                                       float delta) {
    const float weight = exp2f(score * (p.shape.scale * kLog2E) - log_sum * kLog2E);
    const float keep = p.shape.drops ? p.shape.keep(pair, row, key) : 1.0f;
    return {weight * keep, weight * (product * keep - delta)};
}

enum class Gradients { kBoth, kKeys, kValues };

// Grid: blocks of keys, sequences times groups.
template <class T, int kHead, Gradients kWhat>
__global__ void __launch_bounds__(kAttentionThreads, kHead > 128 ? 1 : 2)
    attention_keys_kernel(const Params<T> p) {
    constexpr bool kWithKeys = kWhat != Gradients::kValues;
    constexpr bool kWithValues = kWhat != Gradients::kKeys;
    extern __shared__ __align__(16) unsigned char attention_shared[];
    __shared__ float row_sums[2][kRowTile];
    __shared__ float row_deltas[2][kRowTile];
    T* const memory = reinterpret_cast<T*>(attention_shared);
    using KeyTile = Tile<T, kKeys, kHead>;
    using RowTile = Tile<T, kRowTile, kHead>;
    const KeyTile keys{memory};
    const KeyTile values{memory + KeyTile::kElements};
    const auto stage = [&](std::int64_t number, int which) {
        const int place = static_cast<int>(number % 2) * 2 + which;
        return RowTile{memory + 2 * KeyTile::kElements + place * RowTile::kElements};
    };
    const AttentionShape& shape = p.shape;
    const std::int64_t pair = blockIdx.y;
    const std::int64_t batch = pair / shape.groups;
    const std::int64_t group = pair % shape.groups;
    const std::int64_t first_key = static_cast<std::int64_t>(blockIdx.x) * kKeys;
    const std::int64_t last_key = min(first_key + kKeys, shape.keys) - 1;
    // What sees keys grows with the key.
    const std::int64_t begin = shape.range.queries_of(batch, first_key).begin * shape.ratio;
    const std::int64_t end = shape.range.queries_of(batch, last_key).end * shape.ratio;
    const std::int64_t tiles = end > begin ? (end - begin + kRowTile - 1) / kRowTile : 0;
    const Rows<const T> queries = p.q.group(batch, group);
    const Rows<const T> gradients = p.dout.group(batch, group);
    const auto fetch = [&](std::int64_t tile) {
        if (tile < tiles) {
            const std::int64_t at = begin + tile * kRowTile;
            stage(tile, 0).fetch(queries, at, end, shape.ratio, shape.head, shape.vectors);
            stage(tile, 1).fetch(gradients, at, end, shape.ratio, shape.head, shape.vectors);
            if (threadIdx.x < kRowTile) {
                const std::int64_t row = at + threadIdx.x;
                const std::int64_t number = row < end ? shape.number_of(pair, row) : 0;
                row_sums[tile % 2][threadIdx.x] = row < end ? p.log_sum[number] : 0.0f;
                row_deltas[tile % 2][threadIdx.x] = row < end ? p.deltas[number] : 0.0f;
            }
        }
        __pipeline_commit();
    };
    keys.fetch(p.k.group(batch, group), first_key, shape.keys, 1, shape.head, shape.vectors);
    values.fetch(p.v.group(batch, group), first_key, shape.keys, 1, shape.head, shape.vectors);
    fetch(0);
    fetch(1);

    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_key = static_cast<int>(threadIdx.x) / 32 * 16;
    float dk[kWithKeys ? kHead / 8 : 1][4] = {};
    float dv[kWithValues ? kHead / 8 : 1][4] = {};
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
        __pipeline_wait_prior(1);
        __syncthreads();  // the tile is there for all warps
        float weights[kRowTile / 8][4];
        float steps[kRowTile / 8][4];
        multiply_transposed<T, kHead>(weights, keys, warp_key, stage(tile, 0));
        multiply_transposed<T, kHead>(steps, values, warp_key, stage(tile, 1));
#pragma unroll
        for (int n = 0; n < kRowTile / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 2; ++i) {
                const int column = 8 * n + lane % 4 * 2 + i;
                const std::int64_t row = begin + tile * kRowTile + column;
                const IndexRange seen = row < end ? shape.keys_of(batch, row) : IndexRange{0, 0};
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const std::int64_t key = first_key + warp_key + lane / 4 + 8 * half;
                    float& weight = weights[n][2 * half + i];
                    float& step = steps[n][2 * half + i];
                    Slope own{0.0f, 0.0f};
                    if (key >= seen.begin && key < seen.end) {
                        own = slope(p,
                                    pair,
                                    row,
                                    key,
                                    weight,
                                    step,
                                    row_sums[tile % 2][column],
                                    row_deltas[tile % 2][column]);
                    }
                    weight = own.weight;
                    step = own.step;
                }
            }
        }
        if constexpr (kWithValues) multiply_rows<T, kHead>(dv, weights, stage(tile, 1));
        if constexpr (kWithKeys) multiply_rows<T, kHead>(dk, steps, stage(tile, 0));
        __syncthreads();  // the tile's memory is free
        fetch(tile + 2);
    }
    const std::int64_t warp_first = first_key + warp_key;
    if constexpr (kWithKeys) {
        const float factors[2] = {shape.scale, shape.scale};
        store_rows<T, kHead>(
            p.dk.group(batch, group), dk, warp_first, shape.keys, 1, shape.head, factors);
    }
    if constexpr (kWithValues) {
        const float factors[2] = {1.0f, 1.0f};
        store_rows<T, kHead>(
            p.dv.group(batch, group), dv, warp_first, shape.keys, 1, shape.head, factors);
    }
}

// Grid: blocks of rows, sequences times groups.
template <class T, int kHead>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_queries_kernel(const Params<T> p) {
    extern __shared__ __align__(16) unsigned char attention_shared[];
    T* const memory = reinterpret_cast<T*>(attention_shared);
    using RowTile = Tile<T, kAttentionRows, kHead>;
    using KeyTile = Tile<T, kQueryKeys, kHead>;
    const RowTile queries{memory};
    const RowTile gradients{memory + RowTile::kElements};
    const auto stage = [&](int number, int which) {
        const int place = number % 2 * 2 + which;
        return KeyTile{memory + 2 * RowTile::kElements + place * KeyTile::kElements};
    };
    const AttentionShape& shape = p.shape;
    const std::int64_t pair = blockIdx.y;
    const std::int64_t batch = pair / shape.groups;
    const std::int64_t group = pair % shape.groups;
    const std::int64_t block = gridDim.x - 1 - blockIdx.x;
    const std::int64_t first_row = block * kAttentionRows;
    const std::int64_t last_row = min(first_row + kAttentionRows, shape.rows) - 1;
    const std::int64_t begin = shape.keys_of(batch, first_row).begin;
    const std::int64_t end = max(begin, shape.keys_of(batch, last_row).end);
    const int tiles = static_cast<int>((end - begin + kQueryKeys - 1) / kQueryKeys);
    const Rows<const T> keys = p.k.group(batch, group);
    const Rows<const T> values = p.v.group(batch, group);
    const auto fetch = [&](int tile) {
        if (tile < tiles) {
            const std::int64_t at = begin + std::int64_t{kQueryKeys} * tile;
            stage(tile, 0).fetch(keys, at, end, 1, shape.head, shape.vectors);
            stage(tile, 1).fetch(values, at, end, 1, shape.head, shape.vectors);
        }
        __pipeline_commit();
    };
    queries.fetch(
        p.q.group(batch, group), first_row, shape.rows, shape.ratio, shape.head, shape.vectors);
    gradients.fetch(
        p.dout.group(batch, group), first_row, shape.rows, shape.ratio, shape.head, shape.vectors);
    fetch(0);
    fetch(1);

    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
    const std::int64_t own_row = first_row + warp_row + lane / 4;
    const NearRange seen[2] = {NearRange::of(shape.keys_of(batch, own_row), begin, end),
                               NearRange::of(shape.keys_of(batch, own_row + 8), begin, end)};
    float log_sums[2];
    float deltas[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const std::int64_t row = own_row + 8 * half;
        const std::int64_t number = row < shape.rows ? shape.number_of(pair, row) : 0;
        log_sums[half] = row < shape.rows ? p.log_sum[number] : 0.0f;
        deltas[half] = row < shape.rows ? p.deltas[number] : 0.0f;
    }
    float dq[kHead / 8][4] = {};
    for (int tile = 0; tile < tiles; ++tile) {
        __pipeline_wait_prior(1);
        __syncthreads();  // the tile is there for all warps
        float scores[kQueryKeys / 8][4];
        float steps[kQueryKeys / 8][4];
        multiply_transposed<T, kHead>(scores, queries, warp_row, stage(tile, 0));
        multiply_transposed<T, kHead>(steps, gradients, warp_row, stage(tile, 1));
#pragma unroll
        for (int n = 0; n < kQueryKeys / 8; ++n) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < 2; ++i) {
                    const int key = tile * kQueryKeys + 8 * n + lane % 4 * 2 + i;
                    float& step = steps[n][2 * half + i];
                    step = seen[half].has(key) ? slope(p,
                                                       pair,
                                                       own_row + 8 * half,
                                                       begin + key,
                                                       scores[n][2 * half + i],
                                                       step,
                                                       log_sums[half],
                                                       deltas[half])
                                                     .step
                                               : 0.0f;
                }
            }
        }
        multiply_rows<T, kHead>(dq, steps, stage(tile, 0));
        __syncthreads();  // the tile's memory is free
        fetch(tile + 2);
    }
    const float factors[2] = {shape.scale, shape.scale};
    store_rows<T, kHead>(p.dq.group(batch, group),
                         dq,
                         first_row + warp_row,
                         shape.rows,
                         shape.ratio,
                         shape.head,
                         factors);
}

template <class T, int kHead>
void launch_backward(const AttentionBackward& args, void* stream) {
    Params<T> params{.shape = AttentionShape::of(args.q, args.k, args.rule),
                     .dq = Rows<T>::of(args.dq),
                     .dk = Rows<T>::of(args.dk),
                     .dv = Rows<T>::of(args.dv),
                     .dout = Rows<const T>::of(args.dout),
                     .q = Rows<const T>::of(args.q),
                     .k = Rows<const T>::of(args.k),
                     .v = Rows<const T>::of(args.v),
                     .out = Rows<const T>::of(args.out),
                     .log_sum = args.log_sum.as<const float>(),
                     .deltas = args.workspace.as<float>()};
    params.shape.vectors &=
        params.q.vectors() && params.k.vectors() && params.v.vectors() && params.dout.vectors();
    const std::int64_t pairs = args.q.sizes[0] * args.q.sizes[2];
    MEGACORE_CHECK(
        pairs <= 65535, "attention: at most 65535 sequences times groups, found ", pairs);
    constexpr std::size_t kRowBytes = sizeof(T) * (kHead + 8);
    const auto shape = [&](std::int64_t blocks, std::size_t rows) {
        return LaunchShape{
            .grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(pairs)),
            .block = dim3(kAttentionThreads),
            .shared_bytes = rows * kRowBytes,
            .stream = stream};
    };
    const std::int64_t rows = params.shape.rows;
    const std::int64_t key_blocks = ceil_div(params.shape.keys, kKeys);
    if (rows > 0) launch(attention_delta_kernel<T>, shape(ceil_div(rows, 4), 0), params);
    const LaunchShape of_keys = shape(key_blocks, 2 * kKeys + 4 * kRowTile);
    if (key_blocks == 0) {
        // Nothing to be given a gradient.
    } else if constexpr (kHead < 128) {
        launch_large(attention_keys_kernel<T, kHead, Gradients::kBoth>, of_keys, params);
    } else {
        launch_large(attention_keys_kernel<T, kHead, Gradients::kKeys>, of_keys, params);
        launch_large(attention_keys_kernel<T, kHead, Gradients::kValues>, of_keys, params);
    }
    if (rows == 0) return;
    launch_large(attention_queries_kernel<T, kHead>,
                 shape(ceil_div(rows, kAttentionRows), 2 * kAttentionRows + 4 * kQueryKeys),
                 params);
}

}  // namespace megacore::cuda::attention_backward_kernels
