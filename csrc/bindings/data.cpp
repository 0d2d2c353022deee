// megacore._C.data: indexed datasets.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/fault.h"
#include "data/indexed_reader.h"
#include "data/indexed_writer.h"

namespace py = pybind11;
namespace md = megacore::data;

void bind_data_indices(py::module_& data);
void bind_data_gather(py::module_& data);
void bind_data_sentences(py::module_& data);

namespace {

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;
using Int8Array = py::array_t<std::int8_t, py::array::c_style | py::array::forcecast>;

template <class Array>
std::span<const typename Array::value_type> span_of(const Array& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

py::dtype numpy_type(md::TokenType type) { return py::dtype(std::string(md::type_name(type))); }

md::TokenType token_type_of(const py::dtype& dtype) {
    for (std::uint8_t code = 1; md::is_token_type(code); ++code) {
        const auto type = static_cast<md::TokenType>(code);
        if (dtype.equal(numpy_type(type))) return type;
    }
    md::fault("indexed datasets cannot hold items of type ",
              std::string(py::str(dtype)),
              "; expected uint8, int8, int16, int32, int64, float64, float32 or uint16");
}

/// A read-only view into the .idx mapping, which the reader `owner` keeps alive.
template <class T>
py::array view_of(const md::UnalignedArray<T>& array, const py::object& owner) {
    py::array view(py::dtype::of<T>(),
                   {array.size()},
                   {sizeof(T)},
                   reinterpret_cast<const T*>(array.bytes()),
                   owner);
    view.attr("flags").attr("writeable") = false;
    return view;
}

/// The items of `array`, whose type must be the writer's.
const void* items_of(const md::IndexedWriter& writer, const py::array& array) {
    if (!array.dtype().equal(numpy_type(writer.token_type())) ||
        (array.flags() & py::array::c_style) == 0) {
        md::fault("indexed dataset ",
                  writer.prefix(),
                  ": expected a contiguous array of ",
                  md::type_name(writer.token_type()),
                  ", found ",
                  std::string(py::str(array.dtype())));
    }
    return array.data();
}

void bind_reader(py::module_& data) {
    py::class_<md::IndexedReader, std::shared_ptr<md::IndexedReader>>(data, "IndexedReader")
        .def(py::init([](std::string prefix, bool multimodal, bool mmap, bool validate) {
                 py::gil_scoped_release release;
                 return std::make_shared<md::IndexedReader>(
                     std::move(prefix), md::IndexedReader::Options{multimodal, mmap, validate});
             }),
             py::arg("prefix"),
             py::kw_only(),
             py::arg("multimodal") = false,
             py::arg("mmap") = true,
             py::arg("validate") = true)
        .def_property_readonly("prefix", &md::IndexedReader::prefix)
        .def_property_readonly(
            "dtype", [](const md::IndexedReader& self) { return numpy_type(self.token_type()); })
        .def_property_readonly("multimodal", &md::IndexedReader::multimodal)
        .def_property_readonly("num_sequences", &md::IndexedReader::num_sequences)
        .def_property_readonly("num_items", &md::IndexedReader::num_items)
        .def_property_readonly("sequence_lengths",
                               [](const py::object& self) {
                                   return view_of(self.cast<md::IndexedReader&>().lengths(), self);
                               })
        .def_property_readonly("byte_offsets",
                               [](const py::object& self) {
                                   return view_of(self.cast<md::IndexedReader&>().byte_offsets(),
                                                  self);
                               })
        .def_property_readonly("document_indices",
                               [](const py::object& self) {
                                   return view_of(self.cast<md::IndexedReader&>().boundaries(),
                                                  self);
                               })
        .def_property_readonly("sequence_modes",
                               [](const py::object& self) -> py::object {
                                   const auto& reader = self.cast<md::IndexedReader&>();
                                   if (!reader.multimodal()) return py::none();
                                   return view_of(reader.modes(), self);
                               })
        .def(
            "read",
            [](const md::IndexedReader& self,
               std::int64_t sequence,
               std::int64_t offset,
               std::int64_t count) {
                self.locate(sequence, offset, count);  // before allocating `count` items
                py::array out(numpy_type(self.token_type()), py::array::ShapeContainer{count});
                void* target = out.mutable_data();
                py::gil_scoped_release release;
                self.read(sequence, offset, count, target);
                return out;
            },
            py::arg("sequence"),
            py::arg("offset"),
            py::arg("count"));
}

void bind_writer(py::module_& data) {
    py::class_<md::IndexedWriter>(data, "IndexedWriter")
        .def(py::init([](std::string prefix, const py::dtype& dtype, bool multimodal) {
                 return std::make_unique<md::IndexedWriter>(
                     std::move(prefix), token_type_of(dtype), multimodal);
             }),
             py::arg("prefix"),
             py::arg("dtype"),
             py::kw_only(),
             py::arg("multimodal") = false)
        .def_property_readonly("prefix", &md::IndexedWriter::prefix)
        .def_property_readonly(
            "dtype", [](const md::IndexedWriter& self) { return numpy_type(self.token_type()); })
        .def_property_readonly("multimodal", &md::IndexedWriter::multimodal)
        .def_property_readonly("num_sequences", &md::IndexedWriter::num_sequences)
        .def_property_readonly("num_documents", &md::IndexedWriter::num_documents)
        .def(
            "add_sequences",
            [](md::IndexedWriter& self,
               const py::array& items,
               const Int64Array& lengths,
               const Int8Array& modes) {
                const void* source = items_of(self, items);
                const std::int64_t count = items.size();
                py::gil_scoped_release release;
                self.add_sequences(source, count, span_of(lengths), span_of(modes));
            },
            py::arg("items"),
            py::arg("lengths"),
            py::arg("modes"))
        .def("end_document", &md::IndexedWriter::end_document)
        .def(
            "add_documents",
            [](md::IndexedWriter& self,
               const py::array& items,
               const Int64Array& lengths,
               const Int64Array& sequences_per_document,
               const Int8Array& modes) {
                const void* source = items_of(self, items);
                const std::int64_t count = items.size();
                py::gil_scoped_release release;
                self.add_documents(source,
                                   count,
                                   span_of(lengths),
                                   span_of(sequences_per_document),
                                   span_of(modes));
            },
            py::arg("items"),
            py::arg("lengths"),
            py::arg("sequences_per_document"),
            py::arg("modes"))
        .def("append",
             &md::IndexedWriter::append,
             py::arg("prefix"),
             py::call_guard<py::gil_scoped_release>())
        .def("finalize", &md::IndexedWriter::finalize, py::call_guard<py::gil_scoped_release>())
        .def("abandon", &md::IndexedWriter::abandon);
}

}  // namespace

void bind_data(py::module_& parent) {
    py::module_ data = parent.def_submodule("data", "Dataset indices and readers.");
    // The Python class every data error is raised as; kept alive for the process.
    static PyObject* data_error =
        py::object(py::module_::import("megacore.errors").attr("DataError")).release().ptr();
    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) std::rethrow_exception(pointer);
        } catch (const md::Fault& error) {
            py::set_error(data_error, error.what());
        } catch (const megacore::Error& error) {
            py::set_error(PyExc_ValueError, error.what());
        }
    });
    data.def(
        "dataset_exists",
        [](const std::string& prefix) {
            md::finish_interrupted_publish(prefix);
            return md::file_exists(prefix + ".idx") && md::file_exists(prefix + ".bin");
        },
        py::arg("prefix"));
    bind_reader(data);
    bind_writer(data);
    bind_data_indices(data);
    bind_data_gather(data);
    bind_data_sentences(data);
}
