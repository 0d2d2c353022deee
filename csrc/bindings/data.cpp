// megacore._C.data: dataset indices and readers.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_data(py::module_& parent) {
    py::module_ data = parent.def_submodule("data", "Dataset indices and readers.");
    (void)data;
}
