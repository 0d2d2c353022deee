// The forward CPU kernel of attention.h, compiled once per instruction set.
//
// An item of work is a block of panels of one sequence and group. It goes over the keys in tiles,
// which are converted to float32 once for all panels of the block and then stay in the first-level
// cache, with a running maximum and sum for every row.
//
// When there are few rows and many keys, as in generation, the keys are cut into parts, which are
// put together at the end. Blocks and parts are functions of the shape alone.
#include "kernels/attention_cpu.h"

#include "core/parallel_for.h"
#include "kernels/attention_backward_cpu.h"
#include "kernels/attention_panels.h"
#include "kernels/visit_dtypes.h"

namespace megacore::cpu::MEGACORE_ISA {
namespace {

constexpr std::int64_t kBlockFloats = 32768;  // queries and outputs of a block
constexpr std::int64_t kBlockPanels = 8;
constexpr std::int64_t kFewItems = 64;
constexpr std::int64_t kPartKeys = 512;

// --- How work is cut ----------------------------------------------------------------------------

struct Cut {
    std::int64_t groups;        // sequences times groups
    std::int64_t rows;          // of each
    std::int64_t width;         // of a head, in whole vectors
    std::int64_t block_panels;  // panels of an item
    std::int64_t blocks;        // items of a group
    std::int64_t parts;         // of the keys
    std::int64_t part_keys;

    static Cut of(const AttentionForward& args) {
        const auto& sizes = args.q.sizes;
        const std::int64_t keys = args.k.sizes[1];
        Cut cut{.groups = sizes[0] * sizes[2], .rows = sizes[1] * sizes[3]};
        cut.width = round_up(sizes[4], Vec::kWidth);
        const std::int64_t fit = kBlockFloats / (2 * kPanel * cut.width);
        cut.block_panels = std::clamp<std::int64_t>(fit, 1, kBlockPanels);
        cut.blocks = ceil_div(cut.rows, cut.block_panels * kPanel);
        const std::int64_t items = std::max<std::int64_t>(1, cut.groups * cut.blocks);
        const std::int64_t wanted = std::min(ceil_div(keys, kPartKeys), ceil_div(kFewItems, items));
        cut.parts = cut.rows > kPanel ? 1 : std::max<std::int64_t>(1, wanted);
        cut.part_keys = round_up(ceil_div(keys, cut.parts), kKeyTile);
        return cut;
    }

    // Of a part of a panel: outputs, maxima and sums with rows in lanes.
    std::int64_t part_floats() const { return (width + 2) * kPanel; }
    std::int64_t workspace() const { return parts == 1 ? 0 : groups * parts * part_floats(); }
};

// --- One panel ----------------------------------------------------------------------------------

// Outputs [D, kPanel], not divided by the sums yet, with the maxima that exponentials are relative
// to; a row that has seen nothing has -infinity and 0.
struct State {
    float* out;
    float* largest;
    float* sums;
};

struct Tile {
    const float* keys;    // [kKeyTile, width]
    const float* values;  // [kKeyTile, width]
    IndexRange range;     // the keys of the tile that count
    std::int64_t first;   // number of the key in row 0
};

// Adds a tile of keys. kVecs: vectors of lanes that hold rows.
template <int kVecs>
void add_tile(const State& state,
              const Tile& tile,
              const float* queries,
              const PanelRange& range,
              std::int64_t size,
              const float* keep) {
    alignas(64) float scores[kKeyTile * kPanel];
    const std::int64_t width = round_up(size, Vec::kWidth);
    const std::int64_t count = tile.range.end - tile.range.begin;
    const std::int64_t skipped = (tile.range.begin - tile.first) * width;
    multiply<kVecs, false>(
        scores, kPanel, tile.keys + skipped, width, 1, queries, kPanel, count, size);
    range.hide(scores, tile.range, kNoScore);
    for (int vec = 0; vec < kVecs; ++vec) {
        const int lane = vec * Vec::kWidth;
        const Vec before = Vec::load(state.largest + lane);
        Vec largest = before;
        for (std::int64_t key = 0; key < count; ++key) {
            largest = Vec::max(largest, Vec::load(scores + key * kPanel + lane));
        }
        largest.store(state.largest + lane);
        // Where nothing was seen yet, exponentials are relative to 0 instead of -infinity.
        const Vec shift = Vec::if_less(
            largest, Vec::broadcast(std::numeric_limits<float>::lowest()), Vec::zero(), largest);
        const Vec shrink = exp(before - shift);
        Vec sum = Vec::load(state.sums + lane) * shrink;
        for (std::int64_t key = 0; key < count; ++key) {
            float* const at = scores + key * kPanel + lane;
            const Vec weight = exp(Vec::load(at) - shift);
            sum = sum + weight;
            (keep == nullptr ? weight : weight * Vec::load(keep + key * kPanel + lane)).store(at);
        }
        sum.store(state.sums + lane);
        for (std::int64_t d = 0; d < size; ++d) {
            float* const at = state.out + d * kPanel + lane;
            (Vec::load(at) * shrink).store(at);
        }
    }
    multiply<kVecs, true>(
        state.out, kPanel, tile.values + skipped, 1, width, scores, kPanel, size, count);
}

// Divides by the sums and writes rows and logarithms.
template <class T>
void finish(const AttentionForward& args,
            const State& state,
            std::int64_t batch,
            std::int64_t group,
            std::int64_t first,
            std::int64_t rows) {
    float factors[kPanel];
    const std::int64_t groups = args.q.sizes[2];
    const std::int64_t ratio = args.q.sizes[3];
    float* const log_sum = args.log_sum.as<float>() + batch * rows * groups;
    for (int lane = 0; lane < kPanel; ++lane) {
        const float sum = state.sums[lane];
        factors[lane] = sum == 0.0f ? 0.0f : 1.0f / sum;
        const std::int64_t row = first + lane;
        if (row >= rows) continue;
        log_sum[(row / ratio * groups + group) * ratio + row % ratio] =
            state.largest[lane] + std::log(sum);
    }
    const auto target = HeadRows<T>::of(args.out, batch, group);
    store_panel(target, state.out, first, rows, args.q.sizes[4], factors);
}

void reset(const State& state, std::int64_t width) {
    std::fill(state.out, state.out + width * kPanel, 0.0f);
    std::fill(state.largest, state.largest + kPanel, kNoScore);
    std::fill(state.sums, state.sums + kPanel, 0.0f);
}

// --- One item -----------------------------------------------------------------------------------

template <class T>
class Item {
public:
    Item(const AttentionForward& args, const Cut& cut, std::int64_t pair)
        : args_(args),
          cut_(cut),
          pair_(pair),
          batch_(pair / args.q.sizes[2]),
          group_(pair % args.q.sizes[2]),
          size_(args.q.sizes[4]),
          dropout_(PanelDropout::of(args.rule)) {}

    // Panels from `panel` on, keys [begin, end).
    void run(std::int64_t panel, std::int64_t begin, std::int64_t end, float* part) {
        first_row_ = panel * kPanel;
        count_ = std::min(cut_.block_panels, ceil_div(cut_.rows - first_row_, kPanel));
        load(begin, end);
        const auto key_rows = HeadRows<const T>::of(args_.k, batch_, group_);
        const auto value_rows = HeadRows<const T>::of(args_.v, batch_, group_);
        const Vec one = Vec::broadcast(1.0f);
        for (std::int64_t first = keys_.begin; first < keys_.end; first += kKeyTile) {
            const std::int64_t last = std::min(first + kKeyTile, keys_.end);
            for (std::int64_t key = first; key < last; ++key) {
                const std::int64_t row = (key - first) * cut_.width;
                widen_row(tile_keys_ + row, key_rows.at(key), size_, one);
                widen_row(tile_values_ + row, value_rows.at(key), size_, one);
            }
            for (std::int64_t i = 0; i < count_; ++i) add(i, first, last);
        }
        for (std::int64_t i = 0; i < count_; ++i) {
            if (part != nullptr) {
                const State state = this->state(i);
                std::copy(state.out, state.out + cut_.width * kPanel, part);
                part += cut_.width * kPanel;
                std::copy(state.largest, state.largest + kPanel, part);
                std::copy(state.sums, state.sums + kPanel, part + kPanel);
            } else {
                finish<T>(args_, state(i), batch_, group_, first_row_ + i * kPanel, cut_.rows);
            }
        }
    }

private:
    State state(std::int64_t i) {
        return {storage_ + (2 * i + 1) * kPanel * cut_.width, largest_[i], sums_[i]};
    }
    float* queries(std::int64_t i) { return storage_ + 2 * i * kPanel * cut_.width; }

    void load(std::int64_t begin, std::int64_t end) {
        const auto range = AttentionRange::of(args_.q, args_.k, args_.rule);
        const auto rows = HeadRows<const T>::of(args_.q, batch_, group_);
        keys_ = {end, begin};
        for (std::int64_t i = 0; i < count_; ++i) {
            const std::int64_t first = first_row_ + i * kPanel;
            // The tile's memory is free until the first tile.
            load_panel(tile_values_,
                       queries(i),
                       rows,
                       first,
                       cut_.rows,
                       size_,
                       static_cast<float>(args_.rule.scale));
            ranges_[i].load(range, batch_, rows.ratio, first, cut_.rows);
            const IndexRange own = ranges_[i].within(begin, end);
            if (own.begin < own.end) {
                keys_ = {std::min(keys_.begin, own.begin), std::max(keys_.end, own.end)};
            }
            reset(state(i), cut_.width);
        }
    }

    void add(std::int64_t i, std::int64_t first, std::int64_t last) {
        const Tile tile{tile_keys_, tile_values_, ranges_[i].within(first, last), first};
        if (tile.range.begin == tile.range.end) return;
        const std::int64_t row = first_row_ + i * kPanel;
        const std::int64_t rows = std::min<std::int64_t>(kPanel, cut_.rows - row);
        float* keep = nullptr;
        if (dropout_.active) {
            keep = keep_;
            const std::int64_t ratio = args_.q.sizes[3];
            dropout_.draw(keep, tile.range, rows, [&](std::int64_t lane) {
                const std::int64_t head = pair_ * ratio + (row + lane) % ratio;
                return (head * args_.q.sizes[1] + (row + lane) / ratio) * args_.k.sizes[1];
            });
        }
        const auto add_rows = rows <= Vec::kWidth       ? add_tile<1>
                              : rows <= 2 * Vec::kWidth ? add_tile<2>
                                                        : add_tile<3>;
        add_rows(state(i), tile, queries(i), ranges_[i], size_, keep);
    }

    const AttentionForward& args_;
    const Cut& cut_;
    std::int64_t pair_;
    std::int64_t batch_;
    std::int64_t group_;
    std::int64_t size_;
    PanelDropout dropout_;
    std::int64_t first_row_ = 0;
    std::int64_t count_ = 0;
    IndexRange keys_{0, 0};
    PanelRange ranges_[kBlockPanels];
    alignas(64) float largest_[kBlockPanels][kPanel];
    alignas(64) float sums_[kBlockPanels][kPanel];
    alignas(64) float storage_[kBlockFloats];
    alignas(64) float tile_keys_[kKeyTile * kMaxAttentionHead];
    alignas(64) float tile_values_[kKeyTile * kMaxAttentionHead];
    alignas(64) float keep_[kKeyTile * kPanel];
};

// --- All items ----------------------------------------------------------------------------------

template <class T>
void run_blocks(const AttentionForward& args, const Cut& cut) {
    parallel_for(0, cut.groups * cut.blocks, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            Item<T> item(args, cut, number / cut.blocks);
            // Causal blocks get longer; taken from both ends in turns, neighbours add up to the
            // same, and so do the threads' shares.
            const std::int64_t turn = number % cut.blocks;
            const std::int64_t block = turn % 2 == 0 ? turn / 2 : cut.blocks - 1 - turn / 2;
            item.run(block * cut.block_panels, 0, args.k.sizes[1], nullptr);
        }
    });
}

template <class T>
void run_parts(const AttentionForward& args, const Cut& cut) {
    float* const workspace = args.workspace.as<float>();
    const std::int64_t floats = cut.part_floats();
    parallel_for(0, cut.groups * cut.parts, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t number = begin; number < end; ++number) {
            Item<T> item(args, cut, number / cut.parts);
            const std::int64_t first = number % cut.parts * cut.part_keys;
            const std::int64_t last = std::min(first + cut.part_keys, args.k.sizes[1]);
            item.run(0, std::min(first, last), last, workspace + number * floats);
        }
    });
    parallel_for(0, cut.groups, 1, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t pair = begin; pair < end; ++pair) {
            float* const first = workspace + pair * cut.parts * floats;
            const auto part = [&](std::int64_t number) {
                float* const out = first + number * floats;
                return State{out, out + cut.width * kPanel, out + (cut.width + 1) * kPanel};
            };
            const State all = part(0);
            for (std::int64_t number = 1; number < cut.parts; ++number) {
                const State other = part(number);
                for (int lane = 0; lane < kPanel; ++lane) {
                    const float largest = std::max(all.largest[lane], other.largest[lane]);
                    const float shift = largest == kNoScore ? 0.0f : largest;
                    const float left = std::exp(all.largest[lane] - shift);
                    const float right = std::exp(other.largest[lane] - shift);
                    all.largest[lane] = largest;
                    all.sums[lane] = all.sums[lane] * left + other.sums[lane] * right;
                    for (std::int64_t at = lane; at < cut.width * kPanel; at += kPanel) {
                        all.out[at] = all.out[at] * left + other.out[at] * right;
                    }
                }
            }
            const std::int64_t groups = args.q.sizes[2];
            finish<T>(args, all, pair / groups, pair % groups, 0, cut.rows);
        }
    });
}

std::int64_t forward_workspace(const AttentionForward& args) { return Cut::of(args).workspace(); }

void forward(const AttentionForward& args) {
    const Cut cut = Cut::of(args);
    visit_float_dtype(args.q.dtype, [&](auto tag) {
        using T = typename decltype(tag)::type;
        if (cut.parts == 1) {
            run_blocks<T>(args, cut);
        } else {
            run_parts<T>(args, cut);
        }
    });
}

}  // namespace

extern const AttentionKernels attention_kernels;
const AttentionKernels attention_kernels{
    forward_workspace, attention_backward_workspace, forward, attention_backward};

}  // namespace megacore::cpu::MEGACORE_ISA
