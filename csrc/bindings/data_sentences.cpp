// megacore._C.data: samples of several sentences.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "data/fault.h"
#include "data/indexed_reader.h"
#include "data/sentence_mapping.h"
#include "data/sentence_samples.h"
#include "data/token_source.h"

namespace py = pybind11;
namespace md = megacore::data;

namespace {

template <class T>
using CArray = py::array_t<T, py::array::c_style>;

template <class T>
md::UnalignedArray<T> view_of(const CArray<T>& array) {
    return {reinterpret_cast<const std::byte*>(array.data()), array.size()};
}

/// Called from long loops without the interpreter's lock: Control-C ends them, and `progress`
/// hears how far they are.
md::MappingTick make_tick(const std::optional<py::function>& progress) {
    return [&progress](std::int64_t rows) {
        py::gil_scoped_acquire acquire;
        if (PyErr_CheckSignals() != 0) throw py::error_already_set();
        if (progress) (*progress)(rows);
    };
}

/// The rows as an array [n, columns] that owns their memory.
template <class Index, std::size_t columns>
py::array as_array(md::RowBuffer<std::array<Index, columns>>& buffer) {
    const py::ssize_t rows = buffer.size();
    auto* memory = buffer.release();
    py::capsule owner(memory, [](void* pointer) { std::free(pointer); });
    return CArray<Index>(
        {rows, static_cast<py::ssize_t>(columns)}, reinterpret_cast<const Index*>(memory), owner);
}

template <template <class> class Row, class Index, class Map>
py::array mapped(const Map& map) {
    md::RowBuffer<Row<Index>> rows;
    {
        py::gil_scoped_release release;
        map(rows);
    }
    return as_array(rows);
}

void bind_mapping(py::module_& data) {
    py::class_<md::MappingRequest>(data, "MappingRequest", "What is asked of a split.")
        .def(py::init([](std::string name,
                         std::int64_t first_document,
                         std::int64_t last_document,
                         std::optional<std::int64_t> num_samples,
                         std::int64_t max_length,
                         std::int64_t min_sentences,
                         std::uint32_t seed) {
                 return md::MappingRequest{.name = std::move(name),
                                           .first_document = first_document,
                                           .last_document = last_document,
                                           .num_samples = num_samples,
                                           .max_length = max_length,
                                           .min_sentences = min_sentences,
                                           .seed = seed};
             }),
             py::arg("name"),
             py::kw_only(),
             py::arg("first_document"),
             py::arg("last_document"),
             py::arg("num_samples"),
             py::arg("max_length"),
             py::arg("min_sentences"),
             py::arg("seed"));
    data.def(
        "map_spans",
        [](const CArray<std::int32_t>& lengths,
           const CArray<std::int64_t>& boundaries,
           const md::MappingRequest& request,
           double short_probability,
           bool wide,
           const std::optional<py::function>& progress) {
            const md::SentenceLayout layout{view_of(lengths), view_of(boundaries)};
            const md::MappingTick tick = make_tick(progress);
            const auto map = [&](auto& rows) {
                md::map_spans(layout, request, short_probability, tick, rows);
            };
            return wide ? mapped<md::SpanRow, std::uint64_t>(map)
                        : mapped<md::SpanRow, std::uint32_t>(map);
        },
        py::arg("lengths").noconvert(),
        py::arg("boundaries").noconvert(),
        py::arg("request"),
        py::kw_only(),
        py::arg("short_probability"),
        py::arg("wide") = false,
        py::arg("progress") = py::none(),
        "[n, 3]: first sentence, the one behind the last, target length; uint32, or uint64 if "
        "wide");
    data.def(
        "map_blocks",
        [](const CArray<std::int32_t>& lengths,
           const CArray<std::int64_t>& boundaries,
           const CArray<std::int32_t>& title_lengths,
           const md::MappingRequest& request,
           bool wide,
           const std::optional<py::function>& progress) {
            const md::SentenceLayout layout{view_of(lengths), view_of(boundaries)};
            const md::MappingTick tick = make_tick(progress);
            const auto titles = view_of(title_lengths);
            const auto map = [&](auto& rows) {
                md::map_blocks(layout, request, titles, tick, rows);
            };
            return wide ? mapped<md::BlockRow, std::uint64_t>(map)
                        : mapped<md::BlockRow, std::uint32_t>(map);
        },
        py::arg("lengths").noconvert(),
        py::arg("boundaries").noconvert(),
        py::arg("title_lengths").noconvert(),
        py::arg("request"),
        py::kw_only(),
        py::arg("wide") = false,
        py::arg("progress") = py::none(),
        "[n, 4]: first sentence, the one behind the last, document, block; uint32, or uint64 if "
        "wide");
}

using Int64Array = py::array_t<std::int64_t, py::array::c_style | py::array::forcecast>;

template <class Array>
std::span<const typename Array::value_type> span_of(const Array& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

md::RowView row_view(const py::array& rows) {
    const bool is_map = rows.ndim() == 2 && (rows.shape(1) == 3 || rows.shape(1) == 4) &&
                        (rows.flags() & py::array::c_style) != 0;
    const auto size = static_cast<std::size_t>(rows.size());
    md::RowView view;
    if (is_map && rows.dtype().equal(py::dtype::of<std::uint32_t>())) {
        view.narrow = {static_cast<const std::uint32_t*>(rows.data()), size};
    } else if (is_map && rows.dtype().equal(py::dtype::of<std::uint64_t>())) {
        view.wide = {static_cast<const std::uint64_t*>(rows.data()), size};
    } else {
        throw py::value_error("expected a contiguous map [n, 3] or [n, 4] of uint32 or uint64");
    }
    view.columns = rows.shape(1);
    return view;
}

/// Samples together with the map that they read from.
template <class Samples>
struct PythonSamples {
    py::array map;
    Samples samples;
};

md::MaskingRules make_rules(double probability,
                            int max_ngram,
                            std::vector<double> ngram_cdf,
                            bool keep_some,
                            std::int64_t cls,
                            std::int64_t sep,
                            std::int64_t mask,
                            const CArray<std::uint8_t>& continues_word) {
    md::MaskingRules rules;
    rules.probability = probability;
    rules.max_ngram = max_ngram;
    rules.ngram_cdf = std::move(ngram_cdf);
    rules.keep_some = keep_some;
    rules.cls = cls;
    rules.sep = sep;
    rules.mask = mask;
    rules.vocab_size = continues_word.size();
    rules.continues_word.assign(continues_word.data(),
                                continues_word.data() + continues_word.size());
    return rules;
}

/// The first element of a writable array [height or more, width], or [height or more] for width 0.
template <class T>
T* rows_of(CArray<T>& array, py::ssize_t height, py::ssize_t width, const char* name) {
    const bool fits = array.ndim() == (width == 0 ? 1 : 2) && array.shape(0) >= height &&
                      (width == 0 || array.shape(1) == width);
    if (!fits) {
        throw py::value_error(std::string(name) + ": expected an output of at least " +
                              std::to_string(height) + " rows" +
                              (width == 0 ? "" : " of " + std::to_string(width)));
    }
    return array.mutable_data();
}

/// One row per sample; returns how many rows the outputs must have.
std::int64_t height_of(const Int64Array& samples, const Int64Array& rows) {
    if (samples.size() != rows.size()) throw py::value_error("expected one row per sample");
    std::int64_t height = 0;
    for (const std::int64_t row : span_of(rows)) {
        if (row < 0) throw py::value_error("rows: expected numbers >= 0");
        height = std::max(height, row + 1);
    }
    return height;
}

void bind_masking(py::module_& data) {
    py::class_<md::MaskingRules>(data, "MaskingRules", "Which tokens are masked, and how.")
        .def(py::init(&make_rules),
             py::kw_only(),
             py::arg("probability"),
             py::arg("max_ngram"),
             py::arg("ngram_cdf"),
             py::arg("keep_some"),
             py::arg("cls"),
             py::arg("sep"),
             py::arg("mask"),
             py::arg("continues_word").noconvert());
    py::class_<md::SentenceConfig>(data, "SentenceConfig", "Ids around sentences.")
        .def(py::init([](std::uint32_t seed,
                         std::int64_t sequence_length,
                         std::int64_t cls,
                         std::int64_t sep,
                         std::int64_t pad) {
                 return md::SentenceConfig{seed, sequence_length, cls, sep, pad};
             }),
             py::kw_only(),
             py::arg("seed"),
             py::arg("sequence_length"),
             py::arg("cls"),
             py::arg("sep"),
             py::arg("pad"))
        .def_readonly("sequence_length", &md::SentenceConfig::sequence_length);
}

void bind_bert(py::module_& data) {
    using Held = PythonSamples<md::BertSamples>;
    py::class_<Held>(data, "BertSamples", "Reads samples of one split.")
        .def(py::init([](std::shared_ptr<md::TokenSource> source,
                         py::array map,
                         const md::SentenceConfig& config,
                         const md::MaskingRules& rules,
                         bool two_parts) {
                 const md::RowView view = row_view(map);
                 return Held{std::move(map), {{std::move(source), view}, config, rules, two_parts}};
             }),
             py::arg("source"),
             py::arg("map"),
             py::arg("config"),
             py::arg("rules"),
             py::kw_only(),
             py::arg("two_parts"))
        .def(
            "gather",
            [](const Held& self,
               const Int64Array& samples,
               const Int64Array& rows,
               std::int64_t vocab_size,
               CArray<std::int64_t> text,
               CArray<std::int64_t> types,
               CArray<std::int64_t> labels,
               CArray<float> loss_mask,
               CArray<std::int64_t> is_random,
               CArray<std::int32_t> lengths) {
                const std::int64_t height = height_of(samples, rows);
                const std::int64_t width = self.samples.width();
                const md::BertRows out{rows_of(text, height, width, "text"),
                                       rows_of(types, height, width, "types"),
                                       rows_of(labels, height, width, "labels"),
                                       rows_of(loss_mask, height, width, "loss_mask"),
                                       rows_of(is_random, height, 0, "is_random"),
                                       rows_of(lengths, height, 0, "lengths")};
                const auto chosen = span_of(samples), places = span_of(rows);
                py::gil_scoped_release release;
                self.samples.gather(chosen, places, vocab_size, out);
            },
            py::arg("samples"),
            py::arg("rows"),
            py::kw_only(),
            py::arg("vocab_size"),
            py::arg("text").noconvert(),
            py::arg("types").noconvert(),
            py::arg("labels").noconvert(),
            py::arg("loss_mask").noconvert(),
            py::arg("is_random").noconvert(),
            py::arg("lengths").noconvert());
}

void bind_t5(py::module_& data) {
    using Held = PythonSamples<md::T5Samples>;
    py::class_<Held>(data, "T5Samples", "Reads samples of one split.")
        .def(py::init([](std::shared_ptr<md::TokenSource> source,
                         py::array map,
                         const md::SentenceConfig& config,
                         const md::MaskingRules& rules,
                         std::int64_t bos,
                         std::int64_t eos,
                         std::vector<std::int64_t> sentinels,
                         std::int64_t decoder_length) {
                 const md::RowView view = row_view(map);
                 return Held{std::move(map),
                             {{std::move(source), view},
                              config,
                              rules,
                              {bos, eos, std::move(sentinels)},
                              decoder_length}};
             }),
             py::arg("source"),
             py::arg("map"),
             py::arg("config"),
             py::arg("rules"),
             py::kw_only(),
             py::arg("bos"),
             py::arg("eos"),
             py::arg("sentinels"),
             py::arg("decoder_length"))
        .def(
            "gather",
            [](const Held& self,
               const Int64Array& samples,
               const Int64Array& rows,
               std::int64_t vocab_size,
               CArray<std::int64_t> text_enc,
               CArray<std::int64_t> text_dec,
               CArray<std::int64_t> labels,
               CArray<float> loss_mask,
               CArray<std::int32_t> enc_lengths,
               CArray<std::int32_t> dec_lengths) {
                const std::int64_t height = height_of(samples, rows);
                const std::int64_t encoder = self.samples.width();
                const std::int64_t decoder = self.samples.decoder_width();
                const md::T5Rows out{rows_of(text_enc, height, encoder, "text_enc"),
                                     rows_of(text_dec, height, decoder, "text_dec"),
                                     rows_of(labels, height, decoder, "labels"),
                                     rows_of(loss_mask, height, decoder, "loss_mask"),
                                     rows_of(enc_lengths, height, 0, "enc_lengths"),
                                     rows_of(dec_lengths, height, 0, "dec_lengths")};
                const auto chosen = span_of(samples), places = span_of(rows);
                py::gil_scoped_release release;
                self.samples.gather(chosen, places, vocab_size, out);
            },
            py::arg("samples"),
            py::arg("rows"),
            py::kw_only(),
            py::arg("vocab_size"),
            py::arg("text_enc").noconvert(),
            py::arg("text_dec").noconvert(),
            py::arg("labels").noconvert(),
            py::arg("loss_mask").noconvert(),
            py::arg("enc_lengths").noconvert(),
            py::arg("dec_lengths").noconvert());
}

void bind_ict(py::module_& data) {
    using Held = PythonSamples<md::IctSamples>;
    py::class_<Held>(data, "IctSamples", "Reads queries and blocks of one split.")
        .def(py::init([](std::shared_ptr<md::TokenSource> source,
                         py::array map,
                         const md::SentenceConfig& config,
                         std::shared_ptr<md::TokenSource> titles,
                         double query_in_block) {
                 const md::RowView view = row_view(map);
                 if (view.columns != 4) throw py::value_error("expected a map [n, 4]");
                 return Held{
                     std::move(map),
                     {{std::move(source), view}, config, std::move(titles), query_in_block}};
             }),
             py::arg("source"),
             py::arg("map"),
             py::arg("config"),
             py::kw_only(),
             py::arg("titles").none(true),
             py::arg("query_in_block"))
        .def(
            "gather",
            [](const Held& self,
               const Int64Array& samples,
               const Int64Array& rows,
               std::int64_t vocab_size,
               CArray<std::int64_t> query_tokens,
               CArray<std::int32_t> query_lengths,
               CArray<std::int64_t> context_tokens,
               CArray<std::int32_t> context_lengths,
               CArray<std::int64_t> block_data) {
                const std::int64_t height = height_of(samples, rows);
                const std::int64_t width = self.samples.width();
                const md::IctRows out{rows_of(query_tokens, height, width, "query_tokens"),
                                      rows_of(query_lengths, height, 0, "query_lengths"),
                                      rows_of(context_tokens, height, width, "context_tokens"),
                                      rows_of(context_lengths, height, 0, "context_lengths"),
                                      rows_of(block_data, height, 4, "block_data")};
                const auto chosen = span_of(samples), places = span_of(rows);
                py::gil_scoped_release release;
                self.samples.gather(chosen, places, vocab_size, out);
            },
            py::arg("samples"),
            py::arg("rows"),
            py::kw_only(),
            py::arg("vocab_size"),
            py::arg("query_tokens").noconvert(),
            py::arg("query_lengths").noconvert(),
            py::arg("context_tokens").noconvert(),
            py::arg("context_lengths").noconvert(),
            py::arg("block_data").noconvert())
        .def(
            "gather_blocks",
            [](const Held& self,
               const Int64Array& samples,
               std::int64_t vocab_size,
               CArray<std::int64_t> context_tokens,
               CArray<std::int32_t> context_lengths,
               CArray<std::int64_t> block_data) {
                const md::IctRows out{
                    nullptr,
                    nullptr,
                    rows_of(context_tokens, samples.size(), self.samples.width(), "context_tokens"),
                    rows_of(context_lengths, samples.size(), 0, "context_lengths"),
                    rows_of(block_data, samples.size(), 4, "block_data")};
                const auto chosen = span_of(samples);
                py::gil_scoped_release release;
                self.samples.gather_blocks(chosen, vocab_size, out);
            },
            py::arg("samples"),
            py::kw_only(),
            py::arg("vocab_size"),
            py::arg("context_tokens").noconvert(),
            py::arg("context_lengths").noconvert(),
            py::arg("block_data").noconvert(),
            "The whole blocks of samples, row by row.");
}

}  // namespace

void bind_data_sentences(py::module_& data) {
    bind_mapping(data);
    bind_masking(data);
    bind_bert(data);
    bind_t5(data);
    bind_ict(data);
}
