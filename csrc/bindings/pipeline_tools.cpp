// megacore._C.pipeline: simulation, search, trace files and text of schedules.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <cstdint>
#include <sstream>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/check.h"
#include "pipeline/costs.h"
#include "pipeline/search.h"
#include "pipeline/simulate.h"
#include "pipeline/text.h"
#include "pipeline/trace.h"

namespace py = pybind11;
namespace mp = megacore::pipeline;

namespace {

using EventTuple = std::tuple<mp::Action, double, double>;

/// One number, or a list with one per stage.
std::vector<double> cost_list(const py::object& value) {
    if (py::isinstance<py::float_>(value) || py::isinstance<py::int_>(value)) {
        return {value.cast<double>()};
    }
    return value.cast<std::vector<double>>();
}

void bind_costs(py::module_& pipeline) {
    const auto list = [](std::vector<double> mp::Costs::* member) {
        return [member](const mp::Costs& self) { return self.*member; };
    };
    py::class_<mp::Costs>(pipeline, "Costs", "What the steps of a schedule cost.")
        .def(py::init([](const py::object& forward_us,
                         const py::object& input_grad_us,
                         const py::object& weight_grad_us,
                         const py::object& backward_us,
                         const py::object& pair_us,
                         double transfer_us,
                         double latency_us,
                         double post_us,
                         const py::object& reduce_grad_us,
                         const py::object& gather_param_us,
                         const py::object& activation_bytes,
                         const py::object& kept_bytes) {
                 mp::Costs costs;
                 costs.forward_us = cost_list(forward_us);
                 costs.input_grad_us = cost_list(input_grad_us);
                 costs.weight_grad_us = cost_list(weight_grad_us);
                 if (!backward_us.is_none()) costs.backward_us = cost_list(backward_us);
                 if (!pair_us.is_none()) costs.pair_us = cost_list(pair_us);
                 costs.transfer_us = transfer_us;
                 costs.latency_us = latency_us;
                 costs.post_us = post_us;
                 costs.reduce_grad_us = cost_list(reduce_grad_us);
                 costs.gather_param_us = cost_list(gather_param_us);
                 costs.activation_bytes = cost_list(activation_bytes);
                 if (!kept_bytes.is_none()) costs.kept_bytes = cost_list(kept_bytes);
                 return costs;
             }),
             py::kw_only(),
             py::arg("forward_us") = 1.0,
             py::arg("input_grad_us") = 1.0,
             py::arg("weight_grad_us") = 1.0,
             py::arg("backward_us") = py::none(),
             py::arg("pair_us") = py::none(),
             py::arg("transfer_us") = 0.0,
             py::arg("latency_us") = 0.0,
             py::arg("post_us") = 0.0,
             py::arg("reduce_grad_us") = 0.0,
             py::arg("gather_param_us") = 0.0,
             py::arg("activation_bytes") = 1.0,
             py::arg("kept_bytes") = py::none())
        .def_property_readonly("forward_us", list(&mp::Costs::forward_us))
        .def_property_readonly("input_grad_us", list(&mp::Costs::input_grad_us))
        .def_property_readonly("weight_grad_us", list(&mp::Costs::weight_grad_us))
        .def_property_readonly("backward_us", list(&mp::Costs::backward_us))
        .def_property_readonly("pair_us", list(&mp::Costs::pair_us))
        .def_readonly("transfer_us", &mp::Costs::transfer_us)
        .def_readonly("latency_us", &mp::Costs::latency_us)
        .def_readonly("post_us", &mp::Costs::post_us)
        .def_property_readonly("activation_bytes", list(&mp::Costs::activation_bytes))
        .def_property_readonly("kept_bytes", list(&mp::Costs::kept_bytes));
}

void bind_simulation(py::module_& pipeline) {
    py::class_<mp::RankUse>(pipeline, "RankUse", "What one rank did in a simulation.")
        .def_readonly("busy_us", &mp::RankUse::busy_us)
        .def_readonly("first_us", &mp::RankUse::first_us)
        .def_readonly("last_us", &mp::RankUse::last_us)
        .def_readonly("peak_activations", &mp::RankUse::peak_activations)
        .def_readonly("peak_bytes", &mp::RankUse::peak_bytes);
    py::class_<mp::Simulation>(pipeline, "Simulation", "How a schedule ran.")
        .def_readonly("makespan_us", &mp::Simulation::makespan_us)
        .def_readonly("span_us", &mp::Simulation::span_us)
        .def_readonly("bubble_fraction", &mp::Simulation::bubble_fraction)
        .def_readonly("ranks", &mp::Simulation::ranks)
        .def_property_readonly(
            "timeline",
            [](const mp::Simulation& self) {
                std::vector<std::vector<EventTuple>> timeline;
                for (const auto& events : self.timeline) {
                    auto& row = timeline.emplace_back();
                    for (const mp::Event& event : events) {
                        row.emplace_back(event.action, event.start_us, event.end_us);
                    }
                }
                return timeline;
            },
            "Rank -> its events in order: (action, start, end), microseconds.");
    pipeline.def("simulate",
                 &mp::simulate,
                 py::arg("schedule"),
                 py::arg("costs"),
                 py::call_guard<py::gil_scoped_release>());
}

mp::Timeline timeline_of(const py::handle& source) {
    if (py::isinstance<mp::Simulation>(source)) return source.cast<mp::Simulation&>().timeline;
    mp::Timeline timeline;
    for (const auto& events : source.cast<std::vector<std::vector<EventTuple>>>()) {
        auto& row = timeline.emplace_back();
        for (const auto& [action, start_us, end_us] : events) {
            row.push_back({action, start_us, end_us});
        }
    }
    return timeline;
}

/// The trace file of {name: Simulation, or timeline as lists of (action, start_us, end_us)}.
std::string trace_json(const mp::Placement& placement, const py::dict& sources) {
    std::vector<mp::Timeline> timelines;
    std::vector<mp::TraceSource> named;
    timelines.reserve(sources.size());
    for (const auto& [name, source] : sources) {
        timelines.push_back(timeline_of(source));
        named.push_back({name.cast<std::string>(), &timelines.back()});
    }
    py::gil_scoped_release release;
    std::ostringstream out;
    mp::write_trace(out, placement, named);
    return std::move(out).str();
}

void bind_search(py::module_& pipeline) {
    py::class_<mp::SearchResult>(pipeline, "SearchResult", "What a schedule search found.")
        .def_readonly("schedule", &mp::SearchResult::schedule)
        .def_readonly("costs", &mp::SearchResult::costs)
        .def_readonly("simulation", &mp::SearchResult::simulation)
        .def_readonly("origin", &mp::SearchResult::origin);
    pipeline.def(
        "search",
        [](int num_ranks,
           int num_microbatches,
           const mp::Costs& share,
           double memory_limit,
           std::int64_t effort) {
            return mp::search({num_ranks, num_microbatches, share, memory_limit, effort});
        },
        py::kw_only(),
        py::arg("num_ranks"),
        py::arg("num_microbatches"),
        py::arg("share"),
        py::arg("memory_limit"),
        py::arg("effort") = mp::SearchOptions{}.effort,
        py::call_guard<py::gil_scoped_release>());
    pipeline.def("share_costs", &mp::share_costs, py::arg("placement"), py::arg("share"));
}

}  // namespace

void bind_pipeline_tools(py::module_& parent) {
    py::module_ pipeline = parent.attr("pipeline");
    bind_costs(pipeline);
    bind_simulation(pipeline);
    bind_search(pipeline);
    pipeline.def("trace_json", &trace_json, py::arg("placement"), py::arg("sources"));
    pipeline.def("to_csv", &mp::to_csv, py::arg("schedule"));
    pipeline.def(
        "parse_csv",
        [](const std::string& text, const std::string& source) {
            return mp::parse_csv(text, source);
        },
        py::arg("text"),
        py::arg("source"));
}
