/// One step of a pipeline schedule.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace megacore::pipeline {

/// What a step does. Forward, full backward, and the two halves of a backward pass that zero-bubble
/// schedules separate: input gradient (I) and weight gradient (W). Communication steps move one
/// activation or gradient between the ranks of neighbouring stages, or one bucket between the
/// replicas of a stage.
enum class Kind : std::uint8_t {
    kForward,
    kBackward,
    kInputGrad,
    kWeightGrad,
    kSendForward,
    kRecvForward,
    kSendBackward,
    kRecvBackward,
    kReduceGrad,
    kGatherParam,
};

/// Stage `stage` does `kind` for microbatch `number`; for kReduceGrad and kGatherParam `number` is
/// a bucket of the stage.
///
/// kSendForward of stage s sends its output to stage s + 1, kRecvForward of stage s receives its
/// input from stage s - 1; kSendBackward of stage s sends the gradient of its input to stage s - 1,
/// kRecvBackward of stage s receives the gradient of its output from stage s + 1.
struct Action {
    std::int32_t stage = 0;
    Kind kind = Kind::kForward;
    std::int32_t number = 0;

    friend bool operator==(const Action&, const Action&) = default;
};

/// Whether the step computes (F, B, I, W).
constexpr bool is_compute(Kind kind) { return kind <= Kind::kWeightGrad; }

/// Whether the step moves a tensor between neighbouring stages.
constexpr bool is_transfer(Kind kind) {
    return kind >= Kind::kSendForward && kind <= Kind::kRecvBackward;
}

/// How the kind is written: F, B, I, W, SEND_F, RECV_F, SEND_B, RECV_B, REDUCE_GRAD, GATHER_PARAM.
std::string_view kind_name(Kind kind);

/// The step as text, the form of torch.distributed.pipelining: "0F3", "1RECV_F0", "2W1".
std::string to_string(const Action& action);

/// The step that a text describes.
/// Throws megacore::Error that shows the text when it is no step.
Action parse_action(std::string_view text);

}  // namespace megacore::pipeline
