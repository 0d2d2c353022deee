// megacore._C: the part of the core that needs numpy and no torch.
#include <pybind11/pybind11.h>

namespace py = pybind11;

void bind_data(py::module_& parent);

PYBIND11_MODULE(_C, module) {
    module.doc() = "The torch-free C++ core of megacore.";
    bind_data(module);
}
