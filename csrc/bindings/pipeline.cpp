// megacore._C.pipeline: schedules of pipeline parallelism.
#include <pybind11/operators.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/check.h"
#include "pipeline/action.h"
#include "pipeline/communication.h"
#include "pipeline/schedule.h"
#include "pipeline/schedules.h"
#include "pipeline/validate.h"

namespace py = pybind11;
namespace mp = megacore::pipeline;

namespace {

void bind_action(py::module_& pipeline) {
    py::enum_<mp::Kind>(pipeline, "Kind", "What a step of a schedule does.")
        .value("FORWARD", mp::Kind::kForward)
        .value("BACKWARD", mp::Kind::kBackward)
        .value("INPUT_GRAD", mp::Kind::kInputGrad)
        .value("WEIGHT_GRAD", mp::Kind::kWeightGrad)
        .value("SEND_FORWARD", mp::Kind::kSendForward)
        .value("RECV_FORWARD", mp::Kind::kRecvForward)
        .value("SEND_BACKWARD", mp::Kind::kSendBackward)
        .value("RECV_BACKWARD", mp::Kind::kRecvBackward)
        .value("REDUCE_GRAD", mp::Kind::kReduceGrad)
        .value("GATHER_PARAM", mp::Kind::kGatherParam);
    py::class_<mp::Action>(pipeline, "Action", "One step: stage, kind, microbatch or bucket.")
        .def(py::init([](int stage, mp::Kind kind, int number) {
                 return mp::Action{stage, kind, number};
             }),
             py::arg("stage"),
             py::arg("kind"),
             py::arg("number"))
        .def_static(
            "parse",
            [](const std::string& text) { return mp::parse_action(text); },
            py::arg("text"))
        .def_readonly("stage", &mp::Action::stage)
        .def_readonly("kind", &mp::Action::kind)
        .def_readonly("number", &mp::Action::number)
        .def("__str__", [](const mp::Action& self) { return mp::to_string(self); })
        .def("__repr__", [](const mp::Action& self) { return mp::to_string(self); })
        .def("__hash__",
             [](const mp::Action& self) {
                 return py::hash(
                     py::make_tuple(self.stage, static_cast<int>(self.kind), self.number));
             })
        .def(py::self == py::self);
}

void bind_schedule(py::module_& pipeline) {
    py::class_<mp::Placement>(pipeline, "Placement", "Where the stages live.")
        .def(py::init([](int num_ranks,
                         std::vector<std::vector<int>> chains,
                         std::vector<std::pair<int, int>> microbatches) {
                 return mp::Placement{num_ranks, std::move(chains), std::move(microbatches)};
             }),
             py::arg("num_ranks"),
             py::arg("chains"),
             py::arg("microbatches"))
        .def_readonly("num_ranks", &mp::Placement::num_ranks)
        .def_readonly("chains", &mp::Placement::chains)
        .def_readonly("microbatches", &mp::Placement::microbatches)
        .def_property_readonly("num_stages", &mp::Placement::num_stages)
        .def_property_readonly("num_microbatches", &mp::Placement::num_microbatches)
        .def("rank_of", &mp::Placement::rank_of, py::arg("stage"))
        .def("chain_of", &mp::Placement::chain_of, py::arg("stage"))
        .def("is_first", &mp::Placement::is_first, py::arg("stage"))
        .def("is_last", &mp::Placement::is_last, py::arg("stage"))
        .def("stages_of", &mp::Placement::stages_of, py::arg("rank"));
    py::class_<mp::Schedule>(pipeline, "Schedule", "Each rank's steps, in order.")
        .def(py::init([](std::string name,
                         mp::Placement placement,
                         std::vector<std::vector<mp::Action>> ranks) {
                 return mp::Schedule{std::move(name), std::move(placement), std::move(ranks)};
             }),
             py::arg("name"),
             py::arg("placement"),
             py::arg("ranks"))
        .def_readonly("name", &mp::Schedule::name)
        .def_readonly("placement", &mp::Schedule::placement)
        .def_readonly("ranks", &mp::Schedule::ranks)
        .def_property_readonly("splits_backward",
                               &mp::Schedule::splits_backward,
                               "Whether weight gradients are computed in steps of their own.")
        .def("__repr__", [](const mp::Schedule& self) {
            return megacore::detail::concatenate("Schedule(",
                                                 self.name,
                                                 ", ",
                                                 self.placement.num_ranks,
                                                 " ranks, ",
                                                 self.placement.num_stages(),
                                                 " stages, ",
                                                 self.placement.num_microbatches(),
                                                 " microbatches)");
        });
    pipeline.def(
        "plain_placement", &mp::plain_placement, py::arg("num_ranks"), py::arg("num_microbatches"));
    pipeline.def("interleaved_placement",
                 &mp::interleaved_placement,
                 py::arg("num_ranks"),
                 py::arg("num_chunks"),
                 py::arg("num_microbatches"));
    pipeline.def(
        "v_placement", &mp::v_placement, py::arg("num_ranks"), py::arg("num_microbatches"));
    pipeline.def("mirrored_placement",
                 &mp::mirrored_placement,
                 py::arg("num_ranks"),
                 py::arg("num_microbatches"));
}

void bind_generators(py::module_& pipeline) {
    pipeline.def(
        "schedule_names", &mp::schedule_names, "Names of the schedules that make_schedule knows.");
    pipeline.def(
        "make_schedule",
        [](const std::string& name,
           int num_ranks,
           int num_microbatches,
           int num_chunks,
           int microbatch_group_size,
           std::optional<mp::Costs> costs) {
            mp::ScheduleOptions options;
            options.num_ranks = num_ranks;
            options.num_microbatches = num_microbatches;
            options.num_chunks = num_chunks;
            options.microbatch_group_size = microbatch_group_size;
            if (costs) options.costs = *costs;
            return mp::make_schedule(name, options);
        },
        py::arg("name"),
        py::kw_only(),
        py::arg("num_ranks"),
        py::arg("num_microbatches"),
        py::arg("num_chunks") = 0,
        py::arg("microbatch_group_size") = 0,
        py::arg("costs") = py::none(),
        "The compute steps of a schedule. ValueError where it cannot be made.");
    pipeline.def("add_communication",
                 &mp::add_communication,
                 py::arg("schedule"),
                 py::kw_only(),
                 py::arg("prefetch") = 1,
                 "The schedule with its sends and receives.");
    pipeline.def(
        "validate",
        [](const mp::Schedule& schedule,
           std::vector<double> max_live,
           std::vector<double> activation_size,
           double freed_by_input_grad) {
            return mp::validate(
                schedule, {std::move(max_live), std::move(activation_size), freed_by_input_grad});
        },
        py::arg("schedule"),
        py::kw_only(),
        py::arg("max_live") = std::vector<double>{},
        py::arg("activation_size") = std::vector<double>{1.0},
        py::arg("freed_by_input_grad") = 0.0,
        "Checks that the schedule can run. Returns the most activations that each rank holds at "
        "once; ValueError with a grid where a step is wrong.");
}

}  // namespace

void bind_pipeline(py::module_& parent) {
    py::module_ pipeline = parent.def_submodule("pipeline", "Schedules of pipeline parallelism.");
    bind_action(pipeline);
    bind_schedule(pipeline);
    bind_generators(pipeline);
}
