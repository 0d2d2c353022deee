#include "comm/process_grid.h"

#include <algorithm>
#include <array>
#include <utility>

#include "core/check.h"

namespace megacore::comm {
namespace {

constexpr std::array<std::string_view, 5> kAxes = {"tp", "cp", "ep", "dp", "pp"};

/// Throws the streamed `parts`, for the user: without the source position that MEGACORE_CHECK adds.
template <class... Parts>
[[noreturn]] void refuse(const Parts&... parts) {
    throw Error(megacore::detail::concatenate(parts...));
}

std::vector<std::string> split(std::string_view text) {
    std::vector<std::string> words(1);
    for (const char letter : text) {
        if (letter == '-') {
            words.emplace_back();
        } else {
            words.back() += letter;
        }
    }
    return words;
}

bool contains(const std::vector<std::string>& words, std::string_view word) {
    return std::find(words.begin(), words.end(), word) != words.end();
}

/// Every axis once; those that were left out, which must have degree 1, at the end.
std::vector<std::string> complete_order(std::string_view order, const Degrees& degrees) {
    std::vector<std::string> words = split(order);
    for (std::size_t i = 0; i < words.size(); ++i) {
        if (std::find(kAxes.begin(), kAxes.end(), words[i]) == kAxes.end()) {
            refuse("order ",
                   order,
                   ": '",
                   words[i],
                   "' is no axis; the axes are tp, cp, ep, dp and pp");
        }
        if (std::find(words.begin(), words.begin() + i, words[i]) != words.begin() + i) {
            refuse("order ", order, ": ", words[i], " occurs twice");
        }
    }
    const std::array<int, 5> given = {
        degrees.tensor, degrees.context, degrees.expert, 0, degrees.pipeline};
    for (std::size_t i = 0; i < kAxes.size(); ++i) {
        if (contains(words, kAxes[i])) {
            continue;
        }
        if (kAxes[i] == "dp") {
            refuse("order ", order, ": dp is missing");
        }
        if (given[i] != 1) {
            refuse("order ", order, ": ", kAxes[i], " is missing, and its degree is ", given[i]);
        }
        words.emplace_back(kAxes[i]);
    }
    return words;
}

}  // namespace

ProcessGrid::ProcessGrid(int world_size, const Degrees& degrees, std::string_view order)
    : world_size_(world_size) {
    if (world_size < 1) {
        refuse("the world must have at least 1 process, got ", world_size);
    }
    const int expert_tensor = degrees.expert_tensor == 0 ? degrees.tensor : degrees.expert_tensor;
    for (const auto& [name, degree] : {std::pair{"tensor", degrees.tensor},
                                       std::pair{"context", degrees.context},
                                       std::pair{"pipeline", degrees.pipeline},
                                       std::pair{"expert", degrees.expert},
                                       std::pair{"expert tensor", expert_tensor}}) {
        if (degree < 1) {
            refuse("the ", name, "-parallel degree must be at least 1, got ", degree);
        }
    }
    const auto left = [world_size](const std::vector<std::pair<std::string, int>>& factors) {
        long product = 1;
        std::string text;
        for (const auto& [name, degree] : factors) {
            product *= degree;
            if (product > world_size || world_size % product != 0) {
                refuse("a world of ", world_size, " is no multiple of ", text, name, " ", degree);
            }
            text += name + " " + std::to_string(degree) + " * ";
        }
        return static_cast<int>(world_size / product);
    };
    const int data = left(
        {{"tensor", degrees.tensor}, {"context", degrees.context}, {"pipeline", degrees.pipeline}});
    const int expert_data = left({{"pipeline", degrees.pipeline},
                                  {"expert", degrees.expert},
                                  {"expert tensor", expert_tensor}});

    const std::vector<std::string> axes = complete_order(order, degrees);
    dense_ = make_view(
        axes,
        {{"tp", degrees.tensor}, {"cp", degrees.context}, {"dp", data}, {"pp", degrees.pipeline}});
    std::vector<std::string> expert_axes = axes;
    std::replace(expert_axes.begin(), expert_axes.end(), std::string("tp"), std::string("etp"));
    std::replace(expert_axes.begin(), expert_axes.end(), std::string("dp"), std::string("edp"));
    expert_ = make_view(expert_axes,
                        {{"etp", expert_tensor},
                         {"ep", degrees.expert},
                         {"edp", expert_data},
                         {"pp", degrees.pipeline}});
    const auto pipeline_stride = [](const View& view) {
        return std::find_if(
                   view.begin(), view.end(), [](const Axis& axis) { return axis.name == "pp"; })
            ->stride;
    };
    const bool has_experts = degrees.expert > 1 || expert_tensor != degrees.tensor;
    if (has_experts && degrees.pipeline > 1 &&
        pipeline_stride(dense_) != pipeline_stride(expert_)) {
        refuse(
            "order ",
            order,
            ": with expert ",
            degrees.expert,
            " and expert tensor ",
            expert_tensor,
            " the stages of the experts would be other ranks than those of the other layers; put "
            "pp last");
    }
}

ProcessGrid::View ProcessGrid::make_view(
    const std::vector<std::string>& order,
    const std::vector<std::pair<std::string, int>>& degrees) const {
    View view;
    int stride = 1;
    for (const std::string& name : order) {
        for (const auto& [axis, degree] : degrees) {
            if (axis == name) {
                view.push_back({name, degree, stride});
                stride *= degree;
            }
        }
    }
    return view;
}

const ProcessGrid::Axis& ProcessGrid::find(std::string_view name) const {
    for (const View* view : {&dense_, &expert_}) {
        for (const Axis& axis : *view) {
            if (axis.name == name) {
                return axis;
            }
        }
    }
    refuse("'", name, "' is no axis; the axes are tp, cp, dp, pp and etp, ep, edp");
}

std::vector<const ProcessGrid::Axis*> ProcessGrid::select(std::string_view axes) const {
    const std::vector<std::string> words = split(axes);
    for (const View* view : {&dense_, &expert_}) {
        std::vector<const Axis*> chosen;
        for (const Axis& axis : *view) {
            if (contains(words, axis.name)) {
                chosen.push_back(&axis);
            }
        }
        if (chosen.size() == words.size()) {
            return chosen;
        }
    }
    for (const std::string& word : words) {
        find(word);
    }
    refuse("'", axes, "' are no different axes of one view: tp, cp, dp, pp, or etp, ep, edp, pp");
}

void ProcessGrid::check_rank(int rank) const {
    MEGACORE_CHECK(
        0 <= rank && rank < world_size_, "rank must be 0 to ", world_size_ - 1, ", got ", rank);
}

int ProcessGrid::degree(std::string_view axis) const { return find(axis).degree; }

int ProcessGrid::coordinate(std::string_view axis, int rank) const {
    check_rank(rank);
    const Axis& found = find(axis);
    return rank / found.stride % found.degree;
}

std::vector<int> ProcessGrid::group(std::string_view axes, int rank) const {
    check_rank(rank);
    const std::vector<const Axis*> chosen = select(axes);
    int first = rank;
    for (const Axis* axis : chosen) {
        first -= rank / axis->stride % axis->degree * axis->stride;
    }
    // Axes are in ascending order of stride, so the outermost loop is the one of the last axis and
    // the ranks come out ascending.
    std::vector<int> ranks = {first};
    for (const Axis* axis : chosen) {
        const std::size_t count = ranks.size();
        for (int i = 1; i < axis->degree; ++i) {
            for (std::size_t j = 0; j < count; ++j) {
                ranks.push_back(ranks[j] + i * axis->stride);
            }
        }
    }
    return ranks;
}

std::vector<std::vector<int>> ProcessGrid::groups(std::string_view axes) const {
    const std::vector<const Axis*> chosen = select(axes);
    std::vector<std::vector<int>> all;
    for (int rank = 0; rank < world_size_; ++rank) {
        const bool is_first = std::all_of(chosen.begin(), chosen.end(), [rank](const Axis* axis) {
            return rank / axis->stride % axis->degree == 0;
        });
        if (is_first) {
            all.push_back(group(axes, rank));
        }
    }
    return all;
}

std::vector<int> ProcessGrid::pipeline_group(const std::vector<int>& places, int rank) const {
    const std::vector<int> pipeline = group("pp", rank);
    std::vector<int> ranks;
    for (const int place : places) {
        MEGACORE_CHECK(0 <= place && place < static_cast<int>(pipeline.size()),
                       "a place in the pipeline must be 0 to ",
                       pipeline.size() - 1,
                       ", got ",
                       place);
        ranks.push_back(pipeline[place]);
    }
    std::sort(ranks.begin(), ranks.end());
    ranks.erase(std::unique(ranks.begin(), ranks.end()), ranks.end());
    if (!std::binary_search(ranks.begin(), ranks.end(), rank)) {
        return {rank};
    }
    return ranks;
}

}  // namespace megacore::comm
