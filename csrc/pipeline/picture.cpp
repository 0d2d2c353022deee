#include "pipeline/picture.h"

#include <algorithm>

namespace megacore::pipeline {
namespace {

constexpr std::size_t kRows = 16;
constexpr std::size_t kColumns = 12;

/// First of `shown` of `total` places, with `centre` among them.
std::size_t window(std::size_t centre, std::size_t shown, std::size_t total) {
    if (total <= shown) return 0;
    return std::min(centre - std::min(centre, shown / 2), total - shown);
}

std::string padded(std::string text, std::size_t width) {
    text.append(width - std::min(width, text.size()), ' ');
    return text;
}

}  // namespace

std::string picture(const Schedule& schedule, const std::vector<Mark>& marks) {
    const Mark centre = marks.empty() ? Mark{} : marks.front();
    std::size_t columns = 1;  // one more than the longest list, where a mark may point
    for (const auto& steps : schedule.ranks) columns = std::max(columns, steps.size() + 1);
    const std::size_t num_rows = schedule.ranks.size();
    const std::size_t top = window(static_cast<std::size_t>(centre.rank), kRows, num_rows);
    const std::size_t left = window(centre.step, kColumns, columns);
    const std::size_t bottom = std::min(num_rows, top + kRows);
    const std::size_t right = std::min(columns, left + kColumns);

    std::vector<std::vector<std::string>> cells;
    std::vector<std::size_t> widths;
    for (std::size_t c = left; c < right; ++c) widths.push_back(std::to_string(c).size());
    for (std::size_t r = top; r < bottom; ++r) {
        cells.emplace_back();
        for (std::size_t c = left; c < right; ++c) {
            const bool marked = std::any_of(marks.begin(), marks.end(), [&](const Mark& mark) {
                return static_cast<std::size_t>(mark.rank) == r && mark.step == c;
            });
            const auto& steps = schedule.ranks[r];
            std::string text = c < steps.size() ? to_string(steps[c]) : "";
            if (marked) text.insert(0, 1, '[').push_back(']');
            widths[c - left] = std::max(widths[c - left], text.size());
            cells.back().push_back(std::move(text));
        }
    }
    std::string out = padded("step", 10);
    for (std::size_t c = left; c < right; ++c) {
        out += padded(std::to_string(c), widths[c - left] + 1);
    }
    for (std::size_t r = top; r < bottom; ++r) {
        out += '\n';
        out += padded("rank " + std::to_string(r), 10);
        for (std::size_t c = left; c < right; ++c) {
            out += padded(cells[r - top][c - left], widths[c - left] + 1);
        }
    }
    if (top > 0 || bottom < num_rows || left > 0 || right < columns) {
        out += "\n(part of " + std::to_string(num_rows) + " ranks and " +
               std::to_string(columns - 1) + " steps)";
    }
    return out;
}

}  // namespace megacore::pipeline
