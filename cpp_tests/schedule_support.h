/// Shared by the tests of schedules: schedules written as text, and a slow run that shares no code
/// with the core.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "pipeline/schedule.h"

namespace megacore::testing {

namespace mp = megacore::pipeline;

/// "0F0 0F1 0B0": one rank's steps.
inline std::vector<mp::Action> steps_of(const std::string& text) {
    std::istringstream words(text);
    std::vector<mp::Action> steps;
    for (std::string word; words >> word;) steps.push_back(mp::parse_action(word));
    return steps;
}

inline std::string text_of(const std::vector<mp::Action>& steps) {
    std::string text;
    for (const mp::Action& step : steps) {
        if (!text.empty()) text += ' ';
        text += mp::to_string(step);
    }
    return text;
}

inline mp::Schedule by_hand(mp::Placement placement, const std::vector<std::string>& ranks) {
    mp::Schedule schedule{"by-hand", std::move(placement), {}};
    for (const std::string& rank : ranks) schedule.ranks.push_back(steps_of(rank));
    return schedule;
}

/// Most activations of each rank, in (stage, microbatch) pairs from F to B or W.
inline std::vector<int> live_activations(const mp::Schedule& schedule) {
    std::vector<int> peaks;
    for (const auto& steps : schedule.ranks) {
        int live = 0;
        peaks.push_back(0);
        for (const mp::Action& step : steps) {
            if (step.kind == mp::Kind::kForward) ++live;
            if (step.kind == mp::Kind::kBackward || step.kind == mp::Kind::kWeightGrad) --live;
            peaks.back() = std::max(peaks.back(), live);
        }
    }
    return peaks;
}

/// Takes steps of compute lists round by round. Fails the test unless all ranks come to their
/// ends having done, for every stage and each of its microbatches, one F and after it one B, or one
/// I and after that one W.
inline void expect_complete(const mp::Schedule& schedule) {
    const mp::Placement& placement = schedule.placement;
    std::map<std::pair<int, int>, std::string> did;
    const auto has = [&](int stage, int microbatch, const char* kinds) {
        return did[{stage, microbatch}].find_first_of(kinds) != std::string::npos;
    };
    std::vector<std::size_t> next(schedule.ranks.size(), 0);
    for (bool progress = true; progress;) {
        progress = false;
        for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
            while (next[rank] < schedule.ranks[rank].size()) {
                const mp::Action step = schedule.ranks[rank][next[rank]];
                ASSERT_EQ(placement.rank_of(step.stage), static_cast<int>(rank));
                const char kind = mp::to_string({0, step.kind, 0})[1];
                if (kind == 'F' && !placement.is_first(step.stage) &&
                    !has(step.stage - 1, step.number, "F")) {
                    break;
                }
                if ((kind == 'B' || kind == 'I') && !placement.is_last(step.stage) &&
                    !has(step.stage + 1, step.number, "BI")) {
                    break;
                }
                did[{step.stage, step.number}] += kind;
                ++next[rank];
                progress = true;
            }
        }
    }
    for (std::size_t rank = 0; rank < schedule.ranks.size(); ++rank) {
        ASSERT_EQ(next[rank], schedule.ranks[rank].size())
            << schedule.name << ": rank " << rank << " stopped in "
            << text_of(schedule.ranks[rank]);
    }
    std::size_t expected = 0;
    for (int stage = 0; stage < placement.num_stages(); ++stage) {
        const auto [first, count] =
            placement.microbatches[static_cast<std::size_t>(placement.chain_of(stage))];
        for (int microbatch = first; microbatch < first + count; ++microbatch) {
            const std::string order = did[{stage, microbatch}];
            ASSERT_TRUE(order == "FB" || order == "FIW")
                << schedule.name << ": stage " << stage << ", microbatch " << microbatch << ": "
                << order;
            ++expected;
        }
    }
    ASSERT_EQ(did.size(), expected) << schedule.name;
}

}  // namespace megacore::testing
