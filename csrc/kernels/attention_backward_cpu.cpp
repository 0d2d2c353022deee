// The backward CPU kernel of attention.h, compiled once per instruction set.
//
// An item of work is a chunk of the keys of one sequence and group, with all rows that see it: the
// gradients of its keys and values are summed by one thread, panel after panel. A panel computes
// its scores again. Panels go over the keys in blocks, so that a tile of keys is converted once for
// all panels of a block. When there is one chunk, as there is up to kChunkKeys keys, a block writes
// its gradients of queries; else chunks keep them apart and they are added in the end, in order.
#include "kernels/attention_backward_cpu.h"

#include "core/parallel_for.h"
#include "kernels/attention_panels.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

constexpr std::int64_t kBlockFloats = 5 * kPanel * kMaxAttentionHead;
constexpr std::int64_t kBlockPanels = 8;
constexpr std::int64_t kChunkKeys = 1024;
constexpr std::int64_t kMaxChunks = 4;

struct Cut {
    std::int64_t groups;  // sequences times groups
    std::int64_t rows;    // of each
    std::int64_t width;   // of a head, in whole vectors
    std::int64_t panels;  // of a group
    std::int64_t keys;
    std::int64_t chunk_keys;
    std::int64_t chunks;

    static Cut of(const AttentionBackward& args) {
        const auto& sizes = args.q.sizes;
        Cut cut{.groups = sizes[0] * sizes[2], .rows = sizes[1] * sizes[3]};
        cut.width = round_up(sizes[4], Vec::kWidth);
        cut.panels = ceil_div(cut.rows, kPanel);
        cut.keys = args.k.sizes[1];
        cut.chunk_keys = std::max(kChunkKeys, round_up(ceil_div(cut.keys, kMaxChunks), kKeyTile));
        cut.chunks = std::max<std::int64_t>(1, ceil_div(cut.keys, cut.chunk_keys));
        return cut;
    }

    // Gradients of keys and of values of all groups, then those of the queries of every chunk.
    std::int64_t key_floats() const { return groups * keys * width; }
    std::int64_t query_floats() const { return groups * panels * kPanel * width; }
    std::int64_t workspace() const {
        return 2 * key_floats() + (chunks == 1 ? 0 : chunks * query_floats());
    }
};

// What a panel keeps: rows [kPanel, width] and lanes [D, kPanel] of queries, times the scale, and
// of output gradients; lanes of query gradients.
struct Panel {
    float* q_rows;
    float* q_lanes;
    float* dout_rows;
    float* dout_lanes;
    float* dq_lanes;
};

template <class T>
class Item {
public:
    Item(const AttentionBackward& args, const Cut& cut, std::int64_t pair, std::int64_t chunk)
        : args_(args),
          cut_(cut),
          pair_(pair),
          chunk_(chunk),
          batch_(pair / args.q.sizes[2]),
          group_(pair % args.q.sizes[2]),
          size_(args.q.sizes[4]),
          range_(AttentionRange::of(args.q, args.k, args.rule)),
          dropout_(PanelDropout::of(args.rule)) {
        const std::int64_t fit = kBlockFloats / (5 * kPanel * cut.width);
        block_panels_ = std::clamp<std::int64_t>(fit, 1, kBlockPanels);
    }

    void run() {
        const std::int64_t begin = chunk_ * cut_.chunk_keys;
        const std::int64_t end = std::min(begin + cut_.chunk_keys, cut_.keys);
        float* const dk = args_.workspace.as<float>() + (pair_ * cut_.keys) * cut_.width;
        float* const dv = dk + cut_.key_floats();
        std::fill(dk + begin * cut_.width, dk + end * cut_.width, 0.0f);
        std::fill(dv + begin * cut_.width, dv + end * cut_.width, 0.0f);
        for (std::int64_t panel = 0; panel < cut_.panels; panel += block_panels_) {
            run_block(panel, begin, end, dk, dv);
        }
        const auto dk_rows = HeadRows<T>::of(args_.dk, batch_, group_);
        const auto dv_rows = HeadRows<T>::of(args_.dv, batch_, group_);
        const Vec one = Vec::broadcast(1.0f);
        for (std::int64_t key = begin; key < end; ++key) {
            narrow_row(dk_rows.at(key), dk + key * cut_.width, size_, one);
            narrow_row(dv_rows.at(key), dv + key * cut_.width, size_, one);
        }
    }

    // Adds up what the chunks say about a panel.
    void join(std::int64_t panel) {
        float* const sum = storage_;
        std::fill(sum, sum + kPanel * cut_.width, 0.0f);
        ranges_[0].load(range_, batch_, args_.q.sizes[3], panel * kPanel, cut_.rows);
        for (std::int64_t chunk = 0; chunk < cut_.chunks; ++chunk) {
            const std::int64_t first = chunk * cut_.chunk_keys;
            const IndexRange own = ranges_[0].within(first, first + cut_.chunk_keys);
            if (own.begin == own.end) continue;
            const float* const part = chunk_part(chunk, panel);
            for (std::int64_t i = 0; i < size_ * kPanel; i += Vec::kWidth) {
                (Vec::load(sum + i) + Vec::load(part + i)).store(sum + i);
            }
        }
        store_queries(panel, sum);
    }

private:
    float* chunk_part(std::int64_t chunk, std::int64_t panel) const {
        return args_.workspace.as<float>() + 2 * cut_.key_floats() + chunk * cut_.query_floats() +
               (pair_ * cut_.panels + panel) * kPanel * cut_.width;
    }

    Panel panel(std::int64_t i) {
        const std::int64_t floats = kPanel * cut_.width;
        float* const first = storage_ + 5 * i * floats;
        return {first, first + floats, first + 2 * floats, first + 3 * floats, first + 4 * floats};
    }

    void store_queries(std::int64_t panel, const float* lanes) {
        float factors[kPanel];
        std::fill(factors, factors + kPanel, static_cast<float>(args_.rule.scale));
        const auto target = HeadRows<T>::of(args_.dq, batch_, group_);
        store_panel(target, lanes, panel * kPanel, cut_.rows, size_, factors);
    }

    void run_block(
        std::int64_t first_panel, std::int64_t begin, std::int64_t end, float* dk, float* dv) {
        const std::int64_t count = std::min(block_panels_, cut_.panels - first_panel);
        IndexRange keys{end, begin};
        for (std::int64_t i = 0; i < count; ++i) {
            const std::int64_t first = (first_panel + i) * kPanel;
            ranges_[i].load(range_, batch_, args_.q.sizes[3], first, cut_.rows);
            const IndexRange own = ranges_[i].within(begin, end);
            if (own.begin == own.end) continue;
            keys = {std::min(keys.begin, own.begin), std::max(keys.end, own.end)};
            load(i, first);
        }
        const auto key_rows = HeadRows<const T>::of(args_.k, batch_, group_);
        const auto value_rows = HeadRows<const T>::of(args_.v, batch_, group_);
        const Vec one = Vec::broadcast(1.0f);
        for (std::int64_t first = keys.begin; first < keys.end; first += kKeyTile) {
            const std::int64_t last = std::min(first + kKeyTile, keys.end);
            for (std::int64_t key = first; key < last; ++key) {
                const std::int64_t row = (key - first) * cut_.width;
                widen_row(tile_keys_ + row, key_rows.at(key), size_, one);
                widen_row(tile_values_ + row, value_rows.at(key), size_, one);
            }
            for (std::int64_t i = 0; i < count; ++i) {
                const IndexRange seen = ranges_[i].within(first, last);
                if (seen.begin == seen.end) continue;
                add(i, (first_panel + i) * kPanel, seen, first, dk, dv);
            }
        }
        for (std::int64_t i = 0; i < count; ++i) {
            const IndexRange own = ranges_[i].within(begin, end);
            float* const lanes = panel(i).dq_lanes;
            if (own.begin == own.end) std::fill(lanes, lanes + kPanel * cut_.width, 0.0f);
            if (cut_.chunks == 1) {
                store_queries(first_panel + i, lanes);
            } else if (own.begin < own.end) {
                std::copy(lanes, lanes + kPanel * cut_.width, chunk_part(chunk_, first_panel + i));
            }
        }
    }

    void load(std::int64_t i, std::int64_t first) {
        const Panel own = panel(i);
        const auto q = HeadRows<const T>::of(args_.q, batch_, group_);
        const auto dout = HeadRows<const T>::of(args_.dout, batch_, group_);
        const auto out = HeadRows<const T>::of(args_.out, batch_, group_);
        const float scale = static_cast<float>(args_.rule.scale);
        load_panel(own.q_rows, own.q_lanes, q, first, cut_.rows, size_, scale);
        load_panel(own.dout_rows, own.dout_lanes, dout, first, cut_.rows, size_, 1.0f);
        std::fill(own.dq_lanes, own.dq_lanes + kPanel * cut_.width, 0.0f);
        const std::int64_t groups = args_.q.sizes[2];
        const std::int64_t ratio = args_.q.sizes[3];
        const float* const log_sum =
            args_.log_sum.as<const float>() + batch_ * cut_.rows * groups + group_ * ratio;
        for (std::int64_t lane = 0; lane < kPanel; ++lane) {
            const std::int64_t row = first + lane;
            log_sums_[i][lane] = 0.0f;
            deltas_[i][lane] = 0.0f;
            if (row >= cut_.rows) continue;
            log_sums_[i][lane] = log_sum[row / ratio * groups * ratio + row % ratio];
            float* const scratch = tile_values_;  // free until the first tile
            widen_row(scratch, out.at(row), size_, Vec::broadcast(1.0f));
            Vec sum = Vec::zero();
            for (std::int64_t d = 0; d < cut_.width; d += Vec::kWidth) {
                const Vec gradient = Vec::load(own.dout_rows + lane * cut_.width + d);
                sum = Vec::fma(Vec::load(scratch + d), gradient, sum);
            }
            deltas_[i][lane] = sum.sum();
        }
    }

    // One panel and one tile of keys: five products.
    void add(std::int64_t i,
             std::int64_t row,
             IndexRange keys,
             std::int64_t first,
             float* dk,
             float* dv) {
        const Panel own = panel(i);
        const std::int64_t width = cut_.width;
        const std::int64_t count = keys.end - keys.begin;
        const float* const tile_keys = tile_keys_ + (keys.begin - first) * width;
        const float* const tile_values = tile_values_ + (keys.begin - first) * width;
        multiply<kPanelVecs, false>(
            weights_, kPanel, tile_keys, width, 1, own.q_lanes, kPanel, count, size_);
        multiply<kPanelVecs, false>(
            slopes_, kPanel, tile_values, width, 1, own.dout_lanes, kPanel, count, size_);
        ranges_[i].hide(weights_, keys, kNoScore);
        if (dropout_.active) {
            const std::int64_t ratio = args_.q.sizes[3];
            const std::int64_t rows = std::min<std::int64_t>(kPanel, cut_.rows - row);
            dropout_.draw(keep_, keys, rows, [&](std::int64_t lane) {
                const std::int64_t head = pair_ * ratio + (row + lane) % ratio;
                return (head * args_.q.sizes[1] + (row + lane) / ratio) * cut_.keys;
            });
        }
        for (int lane = 0; lane < kPanel; lane += Vec::kWidth) {
            // Rows that see nothing have a logarithm of -infinity, and no weights.
            const Vec found = Vec::load(log_sums_[i] + lane);
            const Vec shift = Vec::if_less(
                found, Vec::broadcast(std::numeric_limits<float>::lowest()), Vec::zero(), found);
            const Vec delta = Vec::load(deltas_[i] + lane);
            for (std::int64_t key = 0; key < count; ++key) {
                const std::int64_t at = key * kPanel + lane;
                const Vec weight = exp(Vec::load(weights_ + at) - shift);
                Vec slope = Vec::load(slopes_ + at);
                Vec kept = weight;
                if (dropout_.active) {
                    const Vec keep = Vec::load(keep_ + at);
                    slope = slope * keep;
                    kept = weight * keep;
                }
                kept.store(weights_ + at);
                (weight * (slope - delta)).store(slopes_ + at);
            }
        }
        multiply_add_wide(
            dv + keys.begin * width, width, weights_, kPanel, own.dout_rows, width, count, kPanel);
        multiply_add_wide(
            dk + keys.begin * width, width, slopes_, kPanel, own.q_rows, width, count, kPanel);
        multiply<kPanelVecs, true>(
            own.dq_lanes, kPanel, tile_keys, 1, width, slopes_, kPanel, size_, count);
    }

    const AttentionBackward& args_;
    const Cut& cut_;
    std::int64_t pair_;
    std::int64_t chunk_;
    std::int64_t batch_;
    std::int64_t group_;
    std::int64_t size_;
    std::int64_t block_panels_ = 1;
    AttentionRange range_;
    PanelDropout dropout_;
    PanelRange ranges_[kBlockPanels];
    alignas(64) float log_sums_[kBlockPanels][kPanel];
    alignas(64) float deltas_[kBlockPanels][kPanel];
    alignas(64) float storage_[kBlockFloats];
    alignas(64) float tile_keys_[kKeyTile * kMaxAttentionHead];
    alignas(64) float tile_values_[kKeyTile * kMaxAttentionHead];
    alignas(64) float weights_[kKeyTile * kPanel];
    alignas(64) float slopes_[kKeyTile * kPanel];
    alignas(64) float keep_[kKeyTile * kPanel];
};

template <class T>
void run(const AttentionBackward& args, const Cut& cut) {
    parallel_for(0, cut.groups * cut.chunks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            Item<T>(args, cut, number / cut.chunks, number % cut.chunks).run();
        }
    });
    if (cut.chunks == 1) return;
    parallel_for(0, cut.groups * cut.panels, 8, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            Item<T>(args, cut, number / cut.panels, 0).join(number % cut.panels);
        }
    });
}

}  // namespace

std::int64_t attention_backward_workspace(const AttentionBackward& args) {
    return Cut::of(args).workspace();
}

void attention_backward(const AttentionBackward& args) {
    const Cut cut = Cut::of(args);
    visit_float_dtype(args.q.dtype,
                      [&](auto tag) { run<typename decltype(tag)::type>(args, cut); });
}

}  // namespace megacore::cpu::MEGACORE_ISA
