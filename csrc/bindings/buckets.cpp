// megacore._C.comm: layout of flat buffers and their buckets.
#include "comm/buckets.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

namespace py = pybind11;
namespace mc = megacore::comm;

namespace {

using Pair = std::pair<std::int64_t, std::int64_t>;
using Triple = std::tuple<std::int32_t, std::int64_t, std::int64_t>;

Pair pair_of(mc::Range range) { return {range.begin, range.end}; }

std::vector<Triple> triples(const std::vector<mc::Piece>& pieces) {
    std::vector<Triple> out;
    out.reserve(pieces.size());
    for (const mc::Piece& piece : pieces) {
        out.emplace_back(piece.index, piece.range.begin, piece.range.end);
    }
    return out;
}

mc::BucketPlan plan_buckets(const std::vector<std::int64_t>& numels,
                            const std::vector<std::int32_t>& keys,
                            const std::vector<std::int32_t>& units,
                            const std::vector<bool>& alone,
                            std::int64_t max_elements,
                            std::int64_t num_shards) {
    if (keys.size() != numels.size() || units.size() != numels.size() ||
        alone.size() != numels.size()) {
        throw py::value_error("numels, keys, units and alone must be equally long");
    }
    std::vector<mc::BucketParam> params(numels.size());
    for (std::size_t i = 0; i < numels.size(); ++i) {
        params[i] = {numels[i], keys[i], units[i], alone[i]};
    }
    return mc::plan_buckets(params, {max_elements, num_shards});
}

}  // namespace

void bind_buckets(py::module_& parent) {
    py::module_ comm = parent.def_submodule("comm", "Processes and what they exchange.");
    py::class_<mc::BucketPlan>(comm, "BucketPlan", "Where parameters lie in a flat buffer.")
        .def_property_readonly("size", &mc::BucketPlan::size, "Elements of the buffer.")
        .def_property_readonly("num_buckets",
                               [](const mc::BucketPlan& self) { return self.buckets.size(); })
        .def(
            "param_range",
            [](const mc::BucketPlan& self, std::size_t i) { return pair_of(self.ranges.at(i)); },
            py::arg("param_idx"))
        .def(
            "bucket_of",
            [](const mc::BucketPlan& self, std::size_t i) { return self.bucket.at(i); },
            py::arg("param_idx"))
        .def(
            "bucket_range",
            [](const mc::BucketPlan& self, std::size_t i) {
                return pair_of(self.buckets.at(i).range);
            },
            py::arg("bucket_idx"))
        .def(
            "bucket_params",
            [](const mc::BucketPlan& self, std::size_t i) { return self.buckets.at(i).params; },
            py::arg("bucket_idx"))
        .def(
            "shard",
            [](const mc::BucketPlan& self, std::int32_t bucket, std::int64_t shard) {
                return pair_of(self.shard(bucket, shard));
            },
            py::arg("bucket_idx"),
            py::arg("shard_idx"))
        .def(
            "pieces",
            [](const mc::BucketPlan& self, std::int32_t bucket, Pair range) {
                return triples(self.pieces(bucket, {range.first, range.second}));
            },
            py::arg("bucket_idx"),
            py::arg("range"),
            "(parameter, begin, end) of what lies in a range of a bucket.")
        .def(
            "runs",
            [](const mc::BucketPlan& self, std::int32_t bucket, Pair range) {
                return triples(self.runs(bucket, {range.first, range.second}));
            },
            py::arg("bucket_idx"),
            py::arg("range"),
            "(key, begin, end): the range cut where the key changes.");
    comm.def("plan_buckets",
             &plan_buckets,
             py::kw_only(),
             py::arg("numels"),
             py::arg("keys"),
             py::arg("units"),
             py::arg("alone"),
             py::arg("max_elements"),
             py::arg("num_shards"),
             "Places parameters in the order in which their gradients are complete.");
}
