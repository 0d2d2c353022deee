# Finds the Python interpreter, pybind11 and (optionally) torch of that interpreter.
#
# Sets MEGACORE_TORCH_DIR and MEGACORE_TORCH_CUDA (the CUDA version torch was built for, or empty)
# and defines the interface target `megacore_torch` with the headers of torch's stable ABI.

find_package(Python 3.10 REQUIRED COMPONENTS Interpreter Development.Module)

# find_spec does not import torch, so configuring stays quick.
execute_process(
    COMMAND "${Python_EXECUTABLE}" -c [[
import importlib.util as u, pathlib, re
def folder(name):
    spec = u.find_spec(name)
    return pathlib.Path(spec.submodule_search_locations[0]) if spec and spec.submodule_search_locations else None
pybind, torch = folder("pybind11"), folder("torch")
version = cuda = ""
if torch:
    text = (torch / "version.py").read_text()
    version = re.search(r"__version__ = '([^']+)'", text).group(1)
    found = re.search(r"^cuda\b.*= '([^']+)'", text, re.M)
    cuda = found.group(1) if found else ""
print(pybind / "share/cmake/pybind11" if pybind else "", torch or "", version, cuda, sep=";", end="")
]]
    OUTPUT_VARIABLE found RESULT_VARIABLE failed)
if(failed)
    message(FATAL_ERROR "${Python_EXECUTABLE} could not report its pybind11 and torch")
endif()
list(GET found 0 pybind11_hint)
list(GET found 1 MEGACORE_TORCH_DIR)
list(GET found 2 torch_version)
list(GET found 3 MEGACORE_TORCH_CUDA)

set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 2.13 CONFIG REQUIRED HINTS "${pybind11_hint}")

if(MEGACORE_TORCH_DIR AND torch_version VERSION_LESS 2.11)
    message(WARNING "torch ${torch_version} is older than 2.11: megacore._ops is not built, "
                    "every operation runs as plain PyTorch")
    set(MEGACORE_TORCH_DIR "")
endif()
if(MEGACORE_TORCH_DIR)
    message(STATUS "torch ${torch_version} (CUDA: ${MEGACORE_TORCH_CUDA}) in ${MEGACORE_TORCH_DIR}")
    add_library(megacore_torch INTERFACE)
    target_include_directories(megacore_torch SYSTEM INTERFACE "${MEGACORE_TORCH_DIR}/include")
    # The stable ABI of 2.11: one binary serves every later torch.
    target_compile_definitions(megacore_torch INTERFACE TORCH_TARGET_VERSION=0x020b000000000000)
    target_link_libraries(megacore_torch INTERFACE "${MEGACORE_TORCH_DIR}/lib/libtorch_cpu.so")
else()
    message(STATUS "no torch: megacore._ops is not built")
endif()
