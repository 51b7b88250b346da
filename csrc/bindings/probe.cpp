#include "bindings/probe.h"

#include <exception>

#include "bindings/binding.h"
#include "cpu/probe.h"

namespace snipkern {
namespace {

template <typename Measure>
PyObject* told(const Measure& measure) {
  try {
    const Probed found = measure(static_cast<int64_t>(torch::stable::get_num_threads()));
    return Py_BuildValue("dd", found.work, found.seconds);
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* refused(const char* requirement, long long got) {
  return PyErr_Format(PyExc_ValueError, "%s (got %lld)", requirement, got);
}

}  // namespace

PyObject* python_probe_multiply_adds(PyObject*, PyObject* args) {
  long long passes = 0;
  if (!PyArg_ParseTuple(args, "L", &passes)) return nullptr;
  if (passes < 1) return refused("probe_multiply_adds: passes must be positive", passes);
  return told([&](int64_t threads) { return probe_multiply_adds(passes, threads, run_tasks); });
}

PyObject* python_probe_reads(PyObject*, PyObject* args) {
  long long bytes = 0, passes = 0;
  if (!PyArg_ParseTuple(args, "LL", &bytes, &passes)) return nullptr;
  if (bytes < 1) return refused("probe_reads: bytes must be positive", bytes);
  if (passes < 1) return refused("probe_reads: passes must be positive", passes);
  return told([&](int64_t threads) { return probe_reads(bytes, passes, threads, run_tasks); });
}

}  // namespace snipkern
