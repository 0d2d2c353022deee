// megacore._C.data: batches of samples.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/fault.h"
#include "data/gpt_gather.h"
#include "data/indexed_reader.h"
#include "data/token_source.h"

namespace py = pybind11;
namespace md = megacore::data;

namespace {

template <class T>
using CArray = py::array_t<T, py::array::c_style>;
using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

template <class Array>
std::span<const typename Array::value_type> span_of(const Array& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

/// A gather together with the numpy arrays it reads from.
struct PythonGather {
    CArray<std::int32_t> document_index;
    CArray<std::int64_t> sample_index;
    py::array shuffle_index;
    std::unique_ptr<md::GptGather> gather;
};

std::unique_ptr<PythonGather> make_gather(std::shared_ptr<md::TokenSource> source,
                                          CArray<std::int32_t> document_index,
                                          CArray<std::int64_t> sample_index,
                                          py::array shuffle_index,
                                          std::int64_t sequence_length,
                                          std::int64_t pad_id) {
    md::GptIndexView view;
    view.document_index = span_of(document_index);
    view.sample_index = span_of(sample_index);
    const auto size = static_cast<std::size_t>(shuffle_index.size());
    const bool contiguous = (shuffle_index.flags() & py::array::c_style) != 0;
    if (contiguous && shuffle_index.dtype().equal(py::dtype::of<std::uint32_t>())) {
        view.shuffle_index = {static_cast<const std::uint32_t*>(shuffle_index.data()), size};
    } else if (contiguous && shuffle_index.dtype().equal(py::dtype::of<std::int64_t>())) {
        view.wide_shuffle_index = {static_cast<const std::int64_t*>(shuffle_index.data()), size};
    } else {
        throw py::value_error("expected a contiguous shuffle index of uint32 or int64");
    }
    auto gather = std::make_unique<md::GptGather>(std::move(source), view, sequence_length, pad_id);
    return std::make_unique<PythonGather>(PythonGather{std::move(document_index),
                                                       std::move(sample_index),
                                                       std::move(shuffle_index),
                                                       std::move(gather)});
}

/// The first element of a writable, contiguous [rows, columns] array of at least these sizes.
template <class T>
T* output(CArray<T>& array, py::ssize_t rows, py::ssize_t columns, const char* name) {
    if (array.ndim() != 2 || array.shape(0) < rows || array.shape(1) != columns) {
        throw py::value_error(std::string(name) + ": expected an output of shape [" +
                              std::to_string(rows) + ", " + std::to_string(columns) + "]");
    }
    return array.mutable_data();
}

void gather_batch(const PythonGather& self,
                  const Int64Array& samples,
                  const Int64Array& rows,
                  std::int64_t vocab_size,
                  CArray<std::int64_t> tokens,
                  CArray<std::int64_t> labels) {
    const std::span<const std::int64_t> row_numbers = span_of(rows);
    std::int64_t height = 0;
    for (const std::int64_t row : row_numbers) {
        if (row < 0) throw py::value_error("rows: expected numbers >= 0");
        height = std::max(height, row + 1);
    }
    const std::int64_t width = self.gather->sequence_length();
    auto* token_data = output(tokens, height, width, "tokens");
    auto* label_data = output(labels, height, width, "labels");
    const std::span<const std::int64_t> sample_numbers = span_of(samples);
    py::gil_scoped_release release;
    self.gather->gather(sample_numbers, row_numbers, vocab_size, token_data, label_data);
}

py::object finish(CArray<std::int64_t> tokens,
                  CArray<std::int64_t> labels,
                  CArray<float> loss_mask,
                  CArray<std::int64_t> position_ids,
                  std::int64_t eod,
                  std::int64_t pad,
                  bool mask_eod_loss,
                  bool reset_position_ids,
                  bool cut_at_eod) {
    const py::ssize_t b = tokens.ndim() == 2 ? tokens.shape(0) : 0;
    const py::ssize_t width = tokens.ndim() == 2 ? tokens.shape(1) : 0;
    auto* token_data = output(tokens, b, width, "tokens");
    auto* label_data = output(labels, b, width, "labels");
    auto* mask_data = output(loss_mask, b, width, "loss_mask");
    auto* position_data = output(position_ids, b, width, "position_ids");
    const md::BatchRules rules{eod, pad, mask_eod_loss, reset_position_ids, cut_at_eod};
    std::vector<std::int32_t> starts;
    {
        py::gil_scoped_release release;
        starts =
            md::finish_batch(b, width, rules, token_data, label_data, mask_data, position_data);
    }
    if (!cut_at_eod) return py::none();
    return CArray<std::int32_t>(static_cast<py::ssize_t>(starts.size()), starts.data());
}

}  // namespace

void bind_data_gather(py::module_& data) {
    py::class_<md::TokenSource, std::shared_ptr<md::TokenSource>>(data, "TokenSource")
        .def_property_readonly("num_sequences", &md::TokenSource::num_sequences);
    data.def(
        "token_source",
        [](std::shared_ptr<md::IndexedReader> reader) {
            return std::shared_ptr<md::TokenSource>(md::make_token_source(std::move(reader)));
        },
        py::arg("reader"));
    data.def(
        "mock_source",
        [](const CArray<std::int32_t>& lengths, std::int64_t eod) {
            const auto view = span_of(lengths);
            return std::shared_ptr<md::TokenSource>(
                md::make_mock_source({view.begin(), view.end()}, eod));
        },
        py::arg("lengths"),
        py::arg("eod"));
    py::class_<PythonGather>(data, "GptGather", "Reads samples of one split.")
        .def(py::init(&make_gather),
             py::arg("source"),
             py::arg("document_index").noconvert(),
             py::arg("sample_index").noconvert(),
             py::arg("shuffle_index"),
             py::kw_only(),
             py::arg("sequence_length"),
             py::arg("pad_id"))
        .def_property_readonly("num_samples",
                               [](const PythonGather& self) { return self.gather->num_samples(); })
        .def("gather",
             &gather_batch,
             py::arg("samples"),
             py::arg("rows"),
             py::arg("vocab_size"),
             py::arg("tokens").noconvert(),
             py::arg("labels").noconvert(),
             "Rows rows[k] of tokens and labels [*, S] get sample samples[k].");
    data.def("finish_batch",
             &finish,
             py::arg("tokens").noconvert(),
             py::arg("labels").noconvert(),
             py::arg("loss_mask").noconvert(),
             py::arg("position_ids").noconvert(),
             py::kw_only(),
             py::arg("eod"),
             py::arg("pad"),
             py::arg("mask_eod_loss"),
             py::arg("reset_position_ids"),
             py::arg("cut_at_eod"),
             "Fills loss_mask and position_ids [b, S]; int32 segment starts with cut_at_eod.");
}
