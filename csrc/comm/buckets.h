/// Where each parameter lies in a flat buffer, and how the buffer is divided into buckets: the
/// units in which gradients are reduced and parameters are gathered.
///
/// Offsets and sizes are in elements. Pure integers: no memory is touched.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace megacore::comm {

/// Parameters start at multiples of this many elements, so that vector loads are aligned.
inline constexpr std::int64_t kParamAlignment = 64;

/// The end of a sharded bucket is a multiple of this, so that shards of any dtype are aligned.
inline constexpr std::int64_t kShardAlignment = 128;

/// A parameter to be placed.
struct BucketParam {
    std::int64_t numel = 0;
    std::int32_t key = 0;   ///< Parameters of equal key lie together inside their bucket.
    std::int32_t unit = 0;  ///< Neighbours of equal unit share a bucket.
    bool alone = false;     ///< Has a bucket of its own.
};

struct BucketRules {
    std::int64_t max_elements = 0;  ///< A bucket with this many ends; 0: there is no limit.
    std::int64_t num_shards = 1;    ///< Parts of equal length that each bucket is cut into.
};

/// A part of the buffer, [begin, end).
struct Range {
    std::int64_t begin = 0;
    std::int64_t end = 0;

    friend bool operator==(const Range&, const Range&) = default;
    std::int64_t size() const { return end - begin; }
};

/// The part of a parameter, or of neighbours of equal key, that lies in some range.
struct Piece {
    std::int32_t index = 0;  ///< Of the parameter, or the key.
    Range range;             ///< In the buffer.

    friend bool operator==(const Piece&, const Piece&) = default;
};

struct Bucket {
    Range range;                       ///< With the padding at the end.
    std::vector<std::int32_t> params;  ///< In the order in which they lie.
};

class BucketPlan {
public:
    std::vector<BucketParam> params;   ///< As they were given.
    std::vector<Range> ranges;         ///< Of each parameter.
    std::vector<std::int32_t> bucket;  ///< That each parameter is in.
    std::vector<Bucket> buckets;       ///< One behind the other, without gaps.
    std::int64_t num_shards = 1;

    /// Length of the buffer.
    std::int64_t size() const { return buckets.empty() ? 0 : buckets.back().range.end; }

    /// Part `shard` of a bucket.
    Range shard(std::int32_t bucket_idx, std::int64_t shard_idx) const;

    /// The parts of parameters in a range of a bucket, in order.
    std::vector<Piece> pieces(std::int32_t bucket_idx, Range range) const;

    /// The range cut where the key changes; padding belongs to what is before it.
    std::vector<Piece> runs(std::int32_t bucket_idx, Range range) const;
};

/// Places parameters in the order given, which is the order in which their gradients are complete.
/// Throws megacore::Error when a number is out of range.
BucketPlan plan_buckets(std::span<const BucketParam> params, const BucketRules& rules);

}  // namespace megacore::comm
