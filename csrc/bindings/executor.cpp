// megacore._C.pipeline: the executor, with stages and transport in Python.
#include "pipeline/executor.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <exception>
#include <memory>
#include <string>
#include <utility>

#include "core/check.h"

namespace py = pybind11;
namespace mc = megacore::comm;
namespace mp = megacore::pipeline;

// The GIL is held while the executor runs: it calls Python at every step, and what blocks (the
// wait of a transport, a kernel) lets go of it by itself.

namespace {

mc::Value to_value(py::object object) {
    if (object.is_none()) return nullptr;
    return {new py::object(std::move(object)), [](void* held) {
                const py::gil_scoped_acquire acquire;
                delete static_cast<py::object*>(held);
            }};
}

py::object to_object(const mc::Value& value) {
    return value == nullptr ? py::none() : *static_cast<const py::object*>(value.get());
}

/// A Python object with `test() -> bool` and `wait() -> value or None`.
class PyRequest final : public mc::Request {
public:
    explicit PyRequest(py::object handle) : handle_(std::move(handle)) {}

    bool test() override { return handle_.attr("test")().cast<bool>(); }
    mc::Value wait() override { return to_value(handle_.attr("wait")()); }

private:
    py::object handle_;
};

/// A Python object with `post_send(peer, stage, microbatch, backward, value)` and
/// `post_recv(peer, stage, microbatch, backward)`, which return requests, and `abort(reason)`.
class PyCommunicator final : public mc::Communicator {
public:
    explicit PyCommunicator(const py::object& transport)
        : post_send_(transport.attr("post_send")),
          post_recv_(transport.attr("post_recv")),
          abort_(transport.attr("abort")) {}

    std::shared_ptr<mc::Request> post_send(const mc::Message& message, mc::Value value) override {
        return std::make_shared<PyRequest>(post_send_(
            message.peer, message.stage, message.microbatch, message.backward, to_object(value)));
    }

    std::shared_ptr<mc::Request> post_recv(const mc::Message& message) override {
        return std::make_shared<PyRequest>(
            post_recv_(message.peer, message.stage, message.microbatch, message.backward));
    }

    void abort(const std::string& reason) override { abort_(reason); }

private:
    py::object post_send_;
    py::object post_recv_;
    py::object abort_;
};

mp::StageCallbacks callbacks_of(const py::object& stages) {
    return {
        .forward = [call = stages.attr("forward")](
                       int stage, int microbatch, mc::Value input) -> mc::Value {
            py::object object = to_object(input);
            input.reset();  // the stage alone decides how long its input lives
            return to_value(call(stage, microbatch, std::move(object)));
        },
        .backward = [call = stages.attr("backward")](
                        int stage, int microbatch, mc::Value grad, bool input_only) -> mc::Value {
            py::object object = to_object(grad);
            grad.reset();
            return to_value(call(stage, microbatch, std::move(object), input_only));
        },
        .weight_grad = [call = stages.attr("weight_grad")](
                           int stage, int microbatch) { call(stage, microbatch); },
        .reduce_grad = [call = stages.attr("reduce_grad")](int stage,
                                                           int bucket) { call(stage, bucket); },
        .gather_param = [call = stages.attr("gather_param")](int stage,
                                                             int bucket) { call(stage, bucket); },
    };
}

/// Runs, and throws an exception that Python code raised as it was.
mp::RunTrace run(mp::Executor& executor, const py::object& stages, bool forward_only) {
    try {
        return executor.run(callbacks_of(stages), forward_only);
    } catch (const megacore::Error& error) {
        try {
            std::rethrow_if_nested(error);
        } catch (const py::error_already_set&) {
            throw;
        } catch (const std::exception&) {
            // The outer message has all of it.
        }
        throw;
    }
}

}  // namespace

void bind_executor(py::module_& parent) {
    py::module_ pipeline = parent.def_submodule("pipeline");
    py::class_<mp::StepTrace>(pipeline, "StepTrace", "When a step ran, ns of time.monotonic_ns().")
        .def_readonly("action", &mp::StepTrace::action)
        .def_readonly("start_ns", &mp::StepTrace::start_ns)
        .def_readonly("end_ns", &mp::StepTrace::end_ns)
        .def_readonly("wait_ns", &mp::StepTrace::wait_ns);
    py::class_<mp::RunTrace>(pipeline, "RunTrace", "What one run of an executor did.")
        .def_readonly("steps", &mp::RunTrace::steps)
        .def_readonly("start_ns", &mp::RunTrace::start_ns)
        .def_readonly("end_ns", &mp::RunTrace::end_ns)
        .def_readonly("drain_ns", &mp::RunTrace::drain_ns)
        .def_property_readonly("engine_ns", &mp::RunTrace::engine_ns);
    py::class_<mp::Executor>(pipeline, "Executor", "Runs one rank's list of a schedule.")
        .def(py::init([](const mp::Schedule& schedule,
                         int rank,
                         const py::object& transport,
                         int max_pending_sends) {
                 return std::make_unique<mp::Executor>(schedule,
                                                       rank,
                                                       std::make_shared<PyCommunicator>(transport),
                                                       mp::Executor::Options{max_pending_sends});
             }),
             py::arg("schedule"),
             py::arg("rank"),
             py::arg("transport"),
             py::kw_only(),
             py::arg("max_pending_sends") = mp::Executor::Options{}.max_pending_sends)
        .def("run", &run, py::arg("stages"), py::kw_only(), py::arg("forward_only") = false)
        .def_property_readonly("position", &mp::Executor::position);
}
