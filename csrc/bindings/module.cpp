// megacore._C: the part of the core that needs numpy and no torch.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "core/cpu_features.h"

namespace py = pybind11;

void bind_checksum(py::module_& parent);
void bind_comm(py::module_& parent);
void bind_buckets(py::module_& parent);
void bind_data(py::module_& parent);
void bind_executor(py::module_& parent);
void bind_pipeline(py::module_& parent);
void bind_pipeline_tools(py::module_& parent);
void bind_planner(py::module_& parent);

PYBIND11_MODULE(_C, module) {
    module.doc() = "The torch-free C++ core of megacore.";
    module.def("cpu_features",
               &megacore::cpu_features,
               "Names of the vector features of this CPU, such as avx512_bf16.");
    module.def(
        "kernel_isa",
        [] { return megacore::name_of(megacore::detected_isa()); },
        "Instruction set that the CPU kernels use here: baseline, avx2 or avx512.");
    bind_checksum(module);
    bind_comm(module);
    bind_buckets(module);
    bind_data(module);
    bind_pipeline(module);
    bind_pipeline_tools(module);
    bind_planner(module);
    bind_executor(module);
}
