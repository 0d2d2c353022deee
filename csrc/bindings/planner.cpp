// megacore._C.planner: estimates of layouts and the search for the best.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <utility>
#include <vector>

#include "planner/block_cost.h"
#include "planner/estimate.h"
#include "planner/plan_search.h"
#include "planner/step_model.h"

namespace py = pybind11;
namespace pl = megacore::planner;

namespace {

void bind_inputs(py::module_& planner) {
    py::enum_<pl::Sharding>(planner, "Sharding", "What the replicas split.")
        .value("no_shard", pl::Sharding::kNone)
        .value("optim", pl::Sharding::kOptimizer)
        .value("optim_grads", pl::Sharding::kGradients)
        .value("optim_grads_params", pl::Sharding::kParameters);
    py::enum_<pl::Recompute>(planner, "Recompute", "What is recomputed.")
        .value("none", pl::Recompute::kNone)
        .value("selective", pl::Recompute::kSelective)
        .value("full", pl::Recompute::kFull);
    py::class_<pl::Model>(planner, "Model", "The model to plan for.")
        .def(py::init<>())
        .def_readwrite("layers", &pl::Model::layers)
        .def_readwrite("hidden", &pl::Model::hidden)
        .def_readwrite("ffn", &pl::Model::ffn)
        .def_readwrite("heads", &pl::Model::heads)
        .def_readwrite("groups", &pl::Model::groups)
        .def_readwrite("head_width", &pl::Model::head_width)
        .def_readwrite("vocab", &pl::Model::vocab)
        .def_readwrite("vocab_divisor", &pl::Model::vocab_divisor)
        .def_readwrite("seq_length", &pl::Model::seq_length)
        .def_readwrite("learned_positions", &pl::Model::learned_positions)
        .def_readwrite("decoder_layers", &pl::Model::decoder_layers)
        .def_readwrite("decoder_length", &pl::Model::decoder_length)
        .def_readwrite("gated", &pl::Model::gated)
        .def_readwrite("untied", &pl::Model::untied)
        .def_readwrite("linear_bias", &pl::Model::linear_bias)
        .def_readwrite("qkv_bias", &pl::Model::qkv_bias)
        .def_readwrite("norm_bias", &pl::Model::norm_bias)
        .def_readwrite("dropout", &pl::Model::dropout)
        .def_readwrite("causal", &pl::Model::causal)
        .def_readwrite("flash", &pl::Model::flash)
        .def_readwrite("fused_loss", &pl::Model::fused_loss)
        .def_readwrite("half_gradients", &pl::Model::half_gradients)
        .def_readwrite("dtype_bytes", &pl::Model::dtype_bytes)
        .def("padded_vocab", &pl::Model::padded_vocab, py::arg("tensor"));
    py::class_<pl::Link>(planner, "Link", "A level of the network.")
        .def(py::init<>())
        .def_readwrite("bytes_per_s", &pl::Link::bytes_per_s)
        .def_readwrite("efficiency", &pl::Link::efficiency)
        .def_readwrite("latency_s", &pl::Link::latency_s);
    py::class_<pl::Hardware>(planner, "Hardware", "Constants of the cost model.")
        .def(py::init<>())
        .def_readwrite("gpus_per_node", &pl::Hardware::gpus_per_node)
        .def_readwrite("memory_bytes", &pl::Hardware::memory_bytes)
        .def_readwrite("reserve_bytes", &pl::Hardware::reserve_bytes)
        .def_readwrite("allocator_slack", &pl::Hardware::allocator_slack)
        .def_readwrite("peak_flops", &pl::Hardware::peak_flops)
        .def_readwrite("matmul_efficiency", &pl::Hardware::matmul_efficiency)
        .def_readwrite("matmul_half_k", &pl::Hardware::matmul_half_k)
        .def_readwrite("num_units", &pl::Hardware::num_units)
        .def_readwrite("tile_rows", &pl::Hardware::tile_rows)
        .def_readwrite("tile_cols", &pl::Hardware::tile_cols)
        .def_readwrite("weight_grad_efficiency", &pl::Hardware::weight_grad_efficiency)
        .def_readwrite("attention_forward_efficiency", &pl::Hardware::attention_forward_efficiency)
        .def_readwrite("attention_backward_efficiency",
                       &pl::Hardware::attention_backward_efficiency)
        .def_readwrite("batched_matmul_efficiency", &pl::Hardware::batched_matmul_efficiency)
        .def_readwrite("memory_rate", &pl::Hardware::memory_rate)
        .def_readwrite("op_overhead_s", &pl::Hardware::op_overhead_s)
        .def_readwrite("step_overhead_s", &pl::Hardware::step_overhead_s)
        .def_readwrite("overlap_cost", &pl::Hardware::overlap_cost)
        .def_readwrite("straggling", &pl::Hardware::straggling)
        .def_readwrite("inside", &pl::Hardware::inside)
        .def_readwrite("between", &pl::Hardware::between);
    py::class_<pl::Layout>(planner, "Layout", "A way to spread a run.")
        .def(py::init<>())
        .def_readwrite("tensor", &pl::Layout::tensor)
        .def_readwrite("pipeline", &pl::Layout::pipeline)
        .def_readwrite("context", &pl::Layout::context)
        .def_readwrite("data", &pl::Layout::data)
        .def_readwrite("sequence_parallel", &pl::Layout::sequence_parallel)
        .def_readwrite("virtual_stages", &pl::Layout::virtual_stages)
        .def_readwrite("schedule", &pl::Layout::schedule)
        .def_readwrite("micro_batch", &pl::Layout::micro_batch)
        .def_readwrite("sharding", &pl::Layout::sharding)
        .def_readwrite("recompute", &pl::Layout::recompute)
        .def_readwrite("overlap_grad_reduce", &pl::Layout::overlap_grad_reduce)
        .def_readwrite("overlap_param_gather", &pl::Layout::overlap_param_gather)
        .def_readwrite("tp_comm_overlap", &pl::Layout::tp_comm_overlap)
        .def_readwrite("overlap_p2p", &pl::Layout::overlap_p2p)
        .def_readwrite("scatter_transfers", &pl::Layout::scatter_transfers)
        .def_readwrite("first_layers", &pl::Layout::first_layers)
        .def_readwrite("last_layers", &pl::Layout::last_layers)
        .def_readwrite("order", &pl::Layout::order);
}

void bind_estimate(py::module_& planner) {
    py::class_<pl::OpCost>(planner, "OpCost", "One operation of one micro-batch.")
        .def_readonly("name", &pl::OpCost::name)
        .def_readonly("category", &pl::OpCost::category)
        .def_readonly("forward_s", &pl::OpCost::forward_s)
        .def_readonly("input_grad_s", &pl::OpCost::input_grad_s)
        .def_readonly("weight_grad_s", &pl::OpCost::weight_grad_s);
    py::class_<pl::Breakdown>(planner, "Breakdown", "Seconds of a step of the busiest rank.")
        .def_readonly("matmul", &pl::Breakdown::matmul)
        .def_readonly("attention", &pl::Breakdown::attention)
        .def_readonly("memory_bound", &pl::Breakdown::memory_bound)
        .def_readonly("launch", &pl::Breakdown::launch)
        .def_readonly("recompute", &pl::Breakdown::recompute)
        .def_readonly("tensor", &pl::Breakdown::tensor)
        .def_readonly("context", &pl::Breakdown::context)
        .def_readonly("pipeline", &pl::Breakdown::pipeline)
        .def_readonly("data", &pl::Breakdown::data)
        .def_readonly("bubble", &pl::Breakdown::bubble)
        .def_readonly("optimizer", &pl::Breakdown::optimizer)
        .def_readonly("other", &pl::Breakdown::other);
    py::class_<pl::Hidden>(planner, "Hidden", "Seconds of communication behind compute.")
        .def_readonly("tensor", &pl::Hidden::tensor)
        .def_readonly("context", &pl::Hidden::context)
        .def_readonly("pipeline", &pl::Hidden::pipeline)
        .def_readonly("data", &pl::Hidden::data);
    py::class_<pl::RankState>(planner, "RankState", "Parameters and what belongs to them.")
        .def_readonly("elements", &pl::RankState::elements)
        .def_readonly("parameter_bytes", &pl::RankState::parameter_bytes)
        .def_readonly("gradient_bytes", &pl::RankState::gradient_bytes)
        .def_readonly("main_parameter_bytes", &pl::RankState::main_parameter_bytes)
        .def_readonly("main_gradient_bytes", &pl::RankState::main_gradient_bytes)
        .def_readonly("optimizer_bytes", &pl::RankState::optimizer_bytes)
        .def("total", &pl::RankState::total);
    py::class_<pl::RankMemory>(planner, "RankMemory", "Bytes of one pipeline rank at its peak.")
        .def_readonly("state", &pl::RankMemory::state)
        .def_readonly("activations", &pl::RankMemory::activations)
        .def_readonly("transient", &pl::RankMemory::transient)
        .def_readonly("allocator", &pl::RankMemory::allocator)
        .def_readonly("reserve", &pl::RankMemory::reserve)
        .def("total", &pl::RankMemory::total);
    py::class_<pl::Volume>(planner, "Volume", "Bytes that a process sends in a step.")
        .def_readonly("tensor", &pl::Volume::tensor)
        .def_readonly("context", &pl::Volume::context)
        .def_readonly("pipeline", &pl::Volume::pipeline)
        .def_readonly("data", &pl::Volume::data);
    py::class_<pl::Estimate>(planner, "Estimate", "Time, memory and traffic of a step.")
        .def_readonly("step_s", &pl::Estimate::step_s)
        .def_readonly("bubble_fraction", &pl::Estimate::bubble_fraction)
        .def_readonly("num_microbatches", &pl::Estimate::num_microbatches)
        .def_readonly("busiest_rank", &pl::Estimate::busiest_rank)
        .def_readonly("fullest_rank", &pl::Estimate::fullest_rank)
        .def_readonly("breakdown", &pl::Estimate::breakdown)
        .def_readonly("hidden", &pl::Estimate::hidden)
        .def_readonly("memory", &pl::Estimate::memory)
        .def_readonly("volume", &pl::Estimate::volume)
        .def_readonly("training_flops_full", &pl::Estimate::training_flops_full)
        .def_readonly("training_flops_causal", &pl::Estimate::training_flops_causal)
        .def_readonly("recompute_flops", &pl::Estimate::recompute_flops);
    py::class_<pl::StageContent>(planner, "StageContent", "What a pipeline stage holds.")
        .def_readonly("layers", &pl::StageContent::layers)
        .def_readonly("has_embedding", &pl::StageContent::has_embedding)
        .def_readonly("has_output", &pl::StageContent::has_output);
}

void bind_search(py::module_& planner) {
    py::class_<pl::SearchSpace>(planner, "SearchSpace", "The values to try along each axis.")
        .def(py::init<>())
        .def_readwrite("gpus", &pl::SearchSpace::gpus)
        .def_readwrite("global_batch", &pl::SearchSpace::global_batch)
        .def_readwrite("memory_bytes", &pl::SearchSpace::memory_bytes)
        .def_readwrite("tensor", &pl::SearchSpace::tensor)
        .def_readwrite("pipeline", &pl::SearchSpace::pipeline)
        .def_readwrite("context", &pl::SearchSpace::context)
        .def_readwrite("micro_batch", &pl::SearchSpace::micro_batch)
        .def_readwrite("virtual_stages", &pl::SearchSpace::virtual_stages)
        .def_readwrite("schedules", &pl::SearchSpace::schedules)
        .def_readwrite("sequence_parallel", &pl::SearchSpace::sequence_parallel)
        .def_readwrite("tp_comm_overlap", &pl::SearchSpace::tp_comm_overlap)
        .def_readwrite("sharding", &pl::SearchSpace::sharding)
        .def_readwrite("recompute", &pl::SearchSpace::recompute)
        .def_readwrite("overlap_grad_reduce", &pl::SearchSpace::overlap_grad_reduce)
        .def_readwrite("overlap_param_gather", &pl::SearchSpace::overlap_param_gather)
        .def_readwrite("order", &pl::SearchSpace::order)
        .def_readwrite("top", &pl::SearchSpace::top)
        .def_readwrite("max_simulations", &pl::SearchSpace::max_simulations);
    py::class_<pl::Rejection>(planner, "Rejection", "Layouts that one reason rules out.")
        .def_readonly("reason", &pl::Rejection::reason)
        .def_readonly("count", &pl::Rejection::count)
        .def_readonly("example", &pl::Rejection::example);
    py::class_<pl::Alternative>(planner, "Alternative", "The best layout with one value.")
        .def_readonly("axis", &pl::Alternative::axis)
        .def_readonly("value", &pl::Alternative::value)
        .def_readonly("layout", &pl::Alternative::layout)
        .def_readonly("estimate", &pl::Alternative::estimate);
    py::class_<pl::SearchResult>(planner, "SearchResult", "The best layouts and the others.")
        .def_readonly("plans", &pl::SearchResult::plans)
        .def_readonly("rejections", &pl::SearchResult::rejections)
        .def_readonly("alternatives", &pl::SearchResult::alternatives)
        .def_readonly("considered", &pl::SearchResult::considered)
        .def_readonly("legal", &pl::SearchResult::legal)
        .def_readonly("fitting", &pl::SearchResult::fitting)
        .def_readonly("simulated", &pl::SearchResult::simulated)
        .def_readonly("cut_short", &pl::SearchResult::cut_short);
}

using Ops = std::vector<pl::OpCost>;

}  // namespace

void bind_planner(py::module_& parent) {
    py::module_ planner = parent.def_submodule("planner", "Estimates and search of layouts.");
    bind_inputs(planner);
    bind_estimate(planner);
    bind_search(planner);
    planner.def("count_parameters", &pl::count_parameters, py::arg("model"));
    planner.def("training_flops",
                &pl::training_flops,
                py::arg("model"),
                py::arg("batch"),
                py::arg("full_attention"));
    planner.def(
        "refusal",
        [](const pl::Layout& layout, const pl::Model& model, int global_batch) {
            return std::string(pl::refusal(layout, model, global_batch));
        },
        py::arg("layout"),
        py::arg("model"),
        py::arg("global_batch"),
        "Why the layout cannot be run; empty where it can.");
    planner.def("planned_schedules", &pl::planned_schedules);
    planner.def("stage_contents", &pl::stage_contents, py::arg("layout"), py::arg("model"));
    planner.def("held_stages", &pl::held_stages, py::arg("layout"));
    planner.def(
        "list_ops",
        [](const pl::Model& model, const pl::Layout& layout, const pl::Hardware& hardware) {
            const auto blocks = pl::block_costs(model, layout, hardware, true);
            return std::vector<std::pair<std::string, Ops>>{
                {"layer", blocks.layer.ops},
                {"decoder_layer", blocks.decoder_layer.ops},
                {"embedding", blocks.embedding.ops},
                {"output", blocks.output.ops}};
        },
        py::arg("model"),
        py::arg("layout"),
        py::arg("hardware"),
        "Part of the model -> its operations.");
    planner.def("matmul_time",
                &pl::matmul_time,
                py::arg("hardware"),
                py::arg("rows"),
                py::arg("cols"),
                py::arg("inner"),
                py::arg("dtype_bytes"),
                py::arg("accumulates") = false);
    using Release = py::call_guard<py::gil_scoped_release>;
    planner.def("estimate",
                &pl::estimate,
                py::arg("model"),
                py::arg("layout"),
                py::arg("hardware"),
                py::arg("global_batch"),
                Release());
    planner.def("simulate_pipeline",
                &pl::simulate_pipeline,
                py::arg("model"),
                py::arg("layout"),
                py::arg("hardware"),
                py::arg("global_batch"),
                Release());
    planner.def(
        "search", &pl::search, py::arg("model"), py::arg("hardware"), py::arg("space"), Release());
}
