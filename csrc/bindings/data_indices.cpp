// megacore._C.data: random numbers, sample indices and blends.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/blend_argmax.h"
#include "data/blending.h"
#include "data/fault.h"
#include "data/gpt_indices.h"
#include "data/indexed_reader.h"
#include "data/random_state.h"

namespace py = pybind11;
namespace md = megacore::data;

namespace {

template <class T>
using CArray = py::array_t<T, py::array::c_style>;

template <class T>
std::span<T> mutable_span(CArray<T>& array) {
    return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <class T>
CArray<T> new_array(std::vector<py::ssize_t> shape) {
    return CArray<T>(std::move(shape));
}

template <class T>
bool shuffle_as(md::RandomState& random, py::array& values) {
    if (!values.dtype().equal(py::dtype::of<T>())) return false;
    auto* data = static_cast<T*>(values.mutable_data());
    const auto size = static_cast<std::size_t>(values.size());
    py::gil_scoped_release release;
    random.shuffle(std::span<T>(data, size));
    return true;
}

void bind_random_state(py::module_& data) {
    py::class_<md::RandomState>(
        data, "RandomState", "The generator of numpy.random.RandomState(seed).")
        .def(py::init<std::uint32_t>(), py::arg("seed"))
        .def("next32", &md::RandomState::next32)
        .def("next64", &md::RandomState::next64)
        .def("interval", &md::RandomState::interval, py::arg("max"), "Uniform integer in [0, max].")
        .def("random_sample", &md::RandomState::random_sample, "Uniform in [0, 1).")
        .def(
            "shuffle",
            [](md::RandomState& self, py::array values) {
                if (values.ndim() != 1 || (values.flags() & py::array::c_style) == 0) {
                    throw py::value_error("expected a contiguous one-dimensional array");
                }
                if (!shuffle_as<std::int32_t>(self, values) &&
                    !shuffle_as<std::uint32_t>(self, values) &&
                    !shuffle_as<std::int64_t>(self, values) &&
                    !shuffle_as<std::uint64_t>(self, values)) {
                    throw py::value_error(
                        "expected an array of int32, uint32, int64 or uint64, found " +
                        std::string(py::str(values.dtype())));
                }
            },
            py::arg("values"),
            "Permutes a one-dimensional array in place.");
}

void bind_plan(py::module_& data) {
    py::class_<md::GptPlan>(data, "GptPlan", "Sizes of the indices of one split.")
        .def_readonly("num_epochs", &md::GptPlan::num_epochs)
        .def_readonly("document_index_size", &md::GptPlan::document_index_size)
        .def_readonly("num_samples", &md::GptPlan::num_samples)
        .def_readonly("separate_final_epoch", &md::GptPlan::separate_final_epoch)
        .def_readonly("samples_before_final", &md::GptPlan::samples_before_final)
        .def_readonly("wide_shuffle_index", &md::GptPlan::wide_shuffle_index)
        .def_property_readonly("tokens_per_epoch", [](const md::GptPlan& self) {
            return self.request.tokens_per_epoch;
        });
    data.def(
        "plan_gpt_indices",
        [](std::string name,
           std::int64_t first_document,
           std::int64_t last_document,
           std::int64_t tokens_per_epoch,
           std::int64_t sequence_length,
           std::optional<std::int64_t> num_samples,
           std::int64_t extra_tokens,
           bool drop_last) {
            return md::plan_gpt_indices({.name = std::move(name),
                                         .first_document = first_document,
                                         .last_document = last_document,
                                         .tokens_per_epoch = tokens_per_epoch,
                                         .sequence_length = sequence_length,
                                         .num_samples = num_samples,
                                         .extra_tokens = extra_tokens,
                                         .drop_last = drop_last});
        },
        py::arg("name"),
        py::kw_only(),
        py::arg("first_document"),
        py::arg("last_document"),
        py::arg("tokens_per_epoch"),
        py::arg("sequence_length"),
        py::arg("num_samples"),
        py::arg("extra_tokens") = 1,
        py::arg("drop_last") = true);
}

/// Indices for lengths at any address (of a reader, or of an array in memory).
py::tuple build_indices(const md::GptPlan& plan,
                        const md::UnalignedArray<std::int32_t>& lengths,
                        std::uint32_t seed,
                        int num_threads) {
    auto documents = new_array<std::int32_t>({plan.document_index_size});
    auto samples = new_array<std::int64_t>({plan.num_samples + 1, 2});
    auto shuffle = new_array<std::uint32_t>({plan.wide_shuffle_index ? 0 : plan.num_samples});
    auto wide = new_array<std::int64_t>({plan.wide_shuffle_index ? plan.num_samples : 0});
    const md::GptIndices out{
        mutable_span(documents), mutable_span(samples), mutable_span(shuffle), mutable_span(wide)};
    {
        py::gil_scoped_release release;
        md::build_gpt_indices(plan, lengths, seed, num_threads, out);
    }
    if (plan.wide_shuffle_index) return py::make_tuple(documents, samples, wide);
    return py::make_tuple(documents, samples, shuffle);
}

md::UnalignedArray<std::int32_t> as_lengths(const CArray<std::int32_t>& array) {
    return {reinterpret_cast<const std::byte*>(array.data()), array.size()};
}

void bind_gpt_indices(py::module_& data) {
    bind_plan(data);
    data.def(
        "count_tokens",
        [](const CArray<std::int32_t>& lengths, std::int64_t first, std::int64_t last) {
            if (first < 0 || last > lengths.size() || first > last) {
                throw py::index_error("range of sequences outside of the dataset");
            }
            const auto view = as_lengths(lengths);
            py::gil_scoped_release release;
            return md::count_tokens(view, first, last);
        },
        py::arg("lengths").noconvert(),
        py::arg("first"),
        py::arg("last"));
    data.def(
        "build_gpt_indices",
        [](const md::GptPlan& plan,
           const CArray<std::int32_t>& lengths,
           std::uint32_t seed,
           int num_threads) { return build_indices(plan, as_lengths(lengths), seed, num_threads); },
        py::arg("plan"),
        py::arg("lengths").noconvert(),
        py::kw_only(),
        py::arg("seed"),
        py::arg("num_threads") = 1,
        "(document_index int32 [E * documents], sample_index int64 [N + 1, 2], shuffle_index "
        "uint32 or int64 [N])");
}

void bind_blending(py::module_& data) {
    data.def(
        "build_blend",
        [](const CArray<double>& weights, std::int64_t size) {
            if (size < 0) throw py::value_error("expected a size >= 0");
            auto datasets = new_array<std::int16_t>({size});
            auto samples = new_array<std::int64_t>({size});
            const std::span<const double> w(weights.data(),
                                            static_cast<std::size_t>(weights.size()));
            const auto out_datasets = mutable_span(datasets);
            const auto out_samples = mutable_span(samples);
            {
                py::gil_scoped_release release;
                md::build_blend(w, out_datasets, out_samples);
            }
            return py::make_tuple(datasets, samples);
        },
        py::arg("weights"),
        py::arg("size"),
        "(dataset_index int16, dataset_sample_index int64)");
    data.def(
        "fill_blend",
        [](const CArray<double>& weights,
           CArray<std::int16_t> datasets,
           CArray<std::int64_t> samples) {
            if (datasets.size() != samples.size()) {
                throw py::value_error("expected two outputs of one size");
            }
            const std::span<const double> w(weights.data(),
                                            static_cast<std::size_t>(weights.size()));
            const auto out_datasets = mutable_span(datasets);
            const auto out_samples = mutable_span(samples);
            py::gil_scoped_release release;
            md::build_blend(w, out_datasets, out_samples);
        },
        py::arg("weights"),
        py::arg("dataset_index").noconvert(),
        py::arg("dataset_sample_index").noconvert(),
        "build_blend into existing arrays.");
    data.def(
        "build_exhaustive_blend",
        [](const CArray<std::int64_t>& sizes) {
            const std::span<const std::int64_t> s(sizes.data(),
                                                  static_cast<std::size_t>(sizes.size()));
            std::int64_t total = 0;
            for (const std::int64_t size : s) total += size;
            auto datasets = new_array<std::int16_t>({total});
            auto samples = new_array<std::int64_t>({total});
            const auto out_datasets = mutable_span(datasets);
            const auto out_samples = mutable_span(samples);
            {
                py::gil_scoped_release release;
                md::build_exhaustive_blend(s, out_datasets, out_samples);
            }
            return py::make_tuple(datasets, samples);
        },
        py::arg("sizes"),
        "(dataset_index int16, dataset_sample_index int64)");
}

}  // namespace

void bind_data_indices(py::module_& data) {
    bind_random_state(data);
    bind_gpt_indices(data);
    bind_blending(data);
}
