#include "comm/buckets.h"

#include <algorithm>
#include <numeric>

#include "core/check.h"
#include "core/math.h"

namespace megacore::comm {
namespace {

Range intersection(Range a, Range b) {
    return {std::max(a.begin, b.begin), std::min(a.end, b.end)};
}

/// Lays out the parameters `members` as the next bucket of the plan.
void add_bucket(BucketPlan& plan, std::vector<std::int32_t> members) {
    std::stable_sort(members.begin(), members.end(), [&](std::int32_t a, std::int32_t b) {
        return plan.params[a].key < plan.params[b].key;
    });
    const std::int64_t begin = plan.size();
    std::int64_t end = begin;
    for (const std::int32_t index : members) {
        plan.ranges[index] = {end, end + plan.params[index].numel};
        plan.bucket[index] = static_cast<std::int32_t>(plan.buckets.size());
        end = round_up(plan.ranges[index].end, kParamAlignment);
    }
    if (plan.num_shards > 1) {
        end = begin + round_up(end - begin, std::lcm(plan.num_shards, kShardAlignment));
    }
    plan.buckets.push_back({{begin, end}, std::move(members)});
}

}  // namespace

Range BucketPlan::shard(std::int32_t bucket_idx, std::int64_t shard_idx) const {
    const Range whole = buckets.at(bucket_idx).range;
    MEGACORE_CHECK(shard_idx >= 0 && shard_idx < num_shards,
                   "shard: expected 0 to ",
                   num_shards - 1,
                   ", found ",
                   shard_idx);
    const std::int64_t length = whole.size() / num_shards;
    return {whole.begin + shard_idx * length, whole.begin + (shard_idx + 1) * length};
}

std::vector<Piece> BucketPlan::pieces(std::int32_t bucket_idx, Range range) const {
    std::vector<Piece> found;
    for (const std::int32_t index : buckets.at(bucket_idx).params) {
        const Range part = intersection(ranges[index], range);
        if (part.size() > 0) found.push_back({index, part});
    }
    return found;
}

std::vector<Piece> BucketPlan::runs(std::int32_t bucket_idx, Range range) const {
    std::vector<Piece> found;
    for (const Piece& piece : pieces(bucket_idx, range)) {
        const std::int32_t key = params[piece.index].key;
        if (found.empty()) {
            found.push_back({key, {range.begin, piece.range.end}});
        } else if (found.back().index == key) {
            found.back().range.end = piece.range.end;
        } else {
            found.back().range.end = piece.range.begin;
            found.push_back({key, piece.range});
        }
    }
    if (!found.empty()) found.back().range.end = range.end;
    return found;
}

BucketPlan plan_buckets(std::span<const BucketParam> params, const BucketRules& rules) {
    MEGACORE_CHECK(
        rules.max_elements >= 0, "max_elements: expected at least 0, found ", rules.max_elements);
    MEGACORE_CHECK(
        rules.num_shards >= 1, "num_shards: expected at least 1, found ", rules.num_shards);
    BucketPlan plan;
    plan.params.assign(params.begin(), params.end());
    plan.ranges.resize(params.size());
    plan.bucket.resize(params.size());
    plan.num_shards = rules.num_shards;

    std::vector<std::int32_t> open;
    std::int64_t open_elements = 0;
    const auto close = [&] {
        if (!open.empty()) add_bucket(plan, std::move(open));
        open.clear();
        open_elements = 0;
    };
    for (std::size_t i = 0; i < params.size(); ++i) {
        MEGACORE_CHECK(params[i].numel >= 0,
                       "numel of parameter ",
                       i,
                       ": expected at least 0, found ",
                       params[i].numel);
        const bool with_previous = !open.empty() && params[i].unit == params[i - 1].unit;
        const bool full = rules.max_elements > 0 && open_elements >= rules.max_elements;
        if (params[i].alone || (full && !with_previous)) close();
        open.push_back(static_cast<std::int32_t>(i));
        open_elements += params[i].numel;
        if (params[i].alone) close();
    }
    close();
    return plan;
}

}  // namespace megacore::comm
