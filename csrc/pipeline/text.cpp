#include "pipeline/text.h"

#include <algorithm>
#include <map>
#include <optional>

#include "pipeline/refuse.h"

namespace megacore::pipeline {
namespace {

constexpr std::string_view kOverlap = "OVERLAP_F_B";
/// Far above any real schedule; numbers beyond it are mistakes.
constexpr int kMaxNumber = 1 << 24;

std::string_view trimmed(std::string_view text) {
    constexpr std::string_view kBlank = " \t\r";
    const std::size_t first = text.find_first_not_of(kBlank);
    if (first == std::string_view::npos) return {};
    text = text.substr(first, text.find_last_not_of(kBlank) - first + 1);
    if (text.size() >= 2 && text.front() == '"' && text.back() == '"') {
        return trimmed(text.substr(1, text.size() - 2));
    }
    return text;
}

/// What is known of a stage: where it appears first and which microbatches it takes.
struct StageUse {
    int row = 0;
    int column = 0;
    int first = kMaxNumber;
    int last = -1;
};

class Parser {
public:
    Parser(std::string_view text, const std::string& source) : text_(text), source_(source) {}

    Schedule parse() {
        while (!text_.empty() &&
               (trimmed(text_.substr(text_.size() - 1)).empty() || text_.back() == '\n')) {
            text_.remove_suffix(1);
        }
        if (text_.empty()) refuse(source_, ": no steps, the file is empty");
        for (std::size_t begin = 0; begin <= text_.size();) {
            const std::size_t end = std::min(text_.find('\n', begin), text_.size());
            read_row(text_.substr(begin, end - begin));
            begin = end + 1;
        }
        schedule_.name = bare_name(source_);
        infer_placement();
        return std::move(schedule_);
    }

private:
    static std::string bare_name(const std::string& path) {
        const std::string name = path.substr(path.find_last_of('/') + 1);
        return name.substr(0, name.rfind('.'));
    }

    template <class... Parts>
    [[noreturn]] void fail(int row, int column, const Parts&... parts) const {
        refuse(
            source_, ", row ", row + 1, " (rank ", row, "), column ", column + 1, ": ", parts...);
    }

    void read_row(std::string_view line) {
        schedule_.ranks.emplace_back();
        column_ = 0;
        for (std::size_t begin = 0; begin <= line.size(); ++column_) {
            const std::size_t end = std::min(line.find(',', begin), line.size());
            read_cell(trimmed(line.substr(begin, end - begin)));
            begin = end + 1;
        }
    }

    void read_cell(std::string_view cell) {
        if (cell.empty()) return;
        if (cell.front() != '(') {
            add(cell);
            return;
        }
        const std::size_t close = cell.find(')');
        if (close == std::string_view::npos || trimmed(cell.substr(close + 1)) != kOverlap) {
            fail(row(), column_, "expected steps as in (0F1;1B0)OVERLAP_F_B, found '", cell, "'");
        }
        const std::string_view inside = cell.substr(1, close - 1);
        for (std::size_t begin = 0; begin <= inside.size();) {
            const std::size_t end = std::min(inside.find(';', begin), inside.size());
            const std::string_view step = trimmed(inside.substr(begin, end - begin));
            if (!step.empty()) add(step);
            begin = end + 1;
        }
    }

    void add(std::string_view cell) {
        const std::optional<Action> action = parse(cell);
        if (!action || action->stage >= kMaxNumber || action->number >= kMaxNumber) {
            fail(row(),
                 column_,
                 "expected a step, stage, kind and microbatch as in 0F3 (kinds F, B, I, W, SEND_F, "
                 "RECV_F, SEND_B, RECV_B, REDUCE_GRAD, GATHER_PARAM), found '",
                 cell,
                 "'");
        }
        schedule_.ranks.back().push_back(*action);
        const auto [place, is_new] = stages_.try_emplace(action->stage, StageUse{row(), column_});
        StageUse& use = place->second;
        if (!is_new && use.row != row()) {
            fail(row(),
                 column_,
                 "stage ",
                 action->stage,
                 " of ",
                 cell,
                 " is on rank ",
                 use.row,
                 " (column ",
                 use.column + 1,
                 "); a stage is on one rank");
        }
        if (is_compute(action->kind)) {
            use.first = std::min(use.first, action->number);
            use.last = std::max(use.last, action->number);
        }
    }

    static std::optional<Action> parse(std::string_view cell) {
        try {
            return parse_action(cell);
        } catch (const Error&) {
            return std::nullopt;
        }
    }

    void infer_placement() {
        Placement& placement = schedule_.placement;
        placement.num_ranks = static_cast<int>(schedule_.ranks.size());
        if (stages_.empty()) refuse(source_, ": no steps, every cell is empty");
        int expected = 0;
        for (const auto& [stage, use] : stages_) {
            if (stage != expected) {
                refuse(
                    source_, ": stages 0 to ", stages_.rbegin()->first, ", but none is ", expected);
            }
            ++expected;
            if (use.last < 0) fail(use.row, use.column, "stage ", stage, " computes nothing");
            const std::pair<int, int> range{use.first, use.last - use.first + 1};
            auto& ranges = placement.microbatches;
            const int end = ranges.empty() ? 0 : ranges.back().first + ranges.back().second;
            if (ranges.empty() || ranges.back() != range) {
                if (range.first != end) {
                    fail(use.row,
                         use.column,
                         "stage ",
                         stage,
                         " takes microbatches ",
                         use.first,
                         " to ",
                         use.last,
                         stage == 0 ? "; the first stage begins with 0"
                                    : "; expected those of the stage before it, or the next ones, "
                                      "from ",
                         stage == 0 ? "" : std::to_string(end));
                }
                ranges.push_back(range);
                placement.chains.emplace_back();
            }
            placement.chains.back().push_back(use.row);
        }
        for (int r = 0; r < placement.num_ranks; ++r) {
            if (schedule_.ranks[static_cast<std::size_t>(r)].empty()) {
                fail(r, 0, "the rank has no steps");
            }
        }
    }

    int row() const { return static_cast<int>(schedule_.ranks.size()) - 1; }

    std::string_view text_;
    const std::string& source_;
    Schedule schedule_;
    int column_ = 0;
    std::map<int, StageUse> stages_;
};

}  // namespace

std::string to_csv(const Schedule& schedule) {
    std::string out;
    for (const auto& steps : schedule.ranks) {
        for (std::size_t i = 0; i < steps.size(); ++i) {
            if (i > 0) out += ',';
            out += to_string(steps[i]);
        }
        out += '\n';
    }
    return out;
}

Schedule parse_csv(std::string_view text, const std::string& source) {
    return Parser(text, source).parse();
}

}  // namespace megacore::pipeline
