// megacore._C: checksums of buffers.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "core/crc32.h"

namespace py = pybind11;

namespace {

/// A contiguous buffer of any kind, for as long as it is read.
class Bytes {
public:
    explicit Bytes(const py::buffer& buffer) {
        if (PyObject_GetBuffer(buffer.ptr(), &view_, PyBUF_SIMPLE) != 0) {
            throw py::error_already_set();
        }
    }
    Bytes(const Bytes&) = delete;
    Bytes& operator=(const Bytes&) = delete;
    ~Bytes() { PyBuffer_Release(&view_); }

    const void* data() const { return view_.buf; }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }

private:
    Py_buffer view_{};
};

std::uint32_t crc32(const py::buffer& buffer, std::uint32_t seed, std::int64_t threads) {
    const Bytes bytes(buffer);
    const py::gil_scoped_release unlocked;
    return megacore::crc32_in_threads(bytes.data(), bytes.size(), seed, threads);
}

}  // namespace

void bind_checksum(py::module_& parent) {
    parent.def(
        "crc32",
        &crc32,
        py::arg("buffer"),
        py::arg("seed") = 0,
        py::arg("threads") = 1,
        "CRC-32 of zip archives of a contiguous buffer; `seed` is that of what precedes it.");
    parent.def("crc32_combine",
               &megacore::crc32_combine,
               py::arg("first"),
               py::arg("second"),
               py::arg("second_size"),
               "CRC-32 of two stretches of bytes from that of each.");
    parent.def(
        "crc32_method",
        [] { return megacore::name_of(megacore::best_crc32_method()); },
        "How crc32 computes here: table, clmul128, clmul256 or clmul512.");
}
