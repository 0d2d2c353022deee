// megacore._C.comm: how the processes of a run are arranged.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>

#include "comm/process_grid.h"

namespace py = pybind11;
namespace mc = megacore::comm;

void bind_comm(py::module_& parent) {
    py::module_ comm = parent.def_submodule("comm", "How the processes of a run are arranged.");
    comm.attr("DEFAULT_ORDER") = std::string(mc::kDefaultOrder);
    py::class_<mc::ProcessGrid>(comm, "ProcessGrid", "The processes of a run on a grid.")
        .def(py::init([](int world_size,
                         int tensor,
                         int context,
                         int pipeline,
                         int expert,
                         int expert_tensor,
                         const std::string& order) {
                 return mc::ProcessGrid(
                     world_size, {tensor, context, pipeline, expert, expert_tensor}, order);
             }),
             py::arg("world_size"),
             py::kw_only(),
             py::arg("tensor") = 1,
             py::arg("context") = 1,
             py::arg("pipeline") = 1,
             py::arg("expert") = 1,
             py::arg("expert_tensor") = 0,
             py::arg("order") = std::string(mc::kDefaultOrder))
        .def_property_readonly("world_size", &mc::ProcessGrid::world_size)
        .def("degree", &mc::ProcessGrid::degree, py::arg("axis"))
        .def("coordinate", &mc::ProcessGrid::coordinate, py::arg("axis"), py::arg("rank"))
        .def("group", &mc::ProcessGrid::group, py::arg("axes"), py::arg("rank"))
        .def("groups", &mc::ProcessGrid::groups, py::arg("axes"))
        .def(
            "pipeline_group", &mc::ProcessGrid::pipeline_group, py::arg("places"), py::arg("rank"));
}
