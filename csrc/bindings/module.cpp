// The Python module snipkern._C: importing it registers the ops; its functions tell and set the ISA
// tier, and tell the processor's limits.
#include <Python.h>

#include <exception>

#include "bindings/probe.h"
#include "cpu/isa.h"
#include "cpu/memory.h"

namespace {

PyObject* isa(PyObject*, PyObject*) {
  try {
    return PyUnicode_FromString(snipkern::isa_name(snipkern::current_isa()));
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
}

PyObject* best_isa(PyObject*, PyObject*) { return PyUnicode_FromString(snipkern::isa_name(snipkern::best_isa())); }

PyObject* set_isa(PyObject*, PyObject* name) {
  PyObject* bytes = PyUnicode_AsUTF8String(name);
  if (bytes == nullptr) return nullptr;
  const bool known = snipkern::set_isa(PyBytes_AsString(bytes));
  Py_DECREF(bytes);
  return PyBool_FromLong(known);
}

PyObject* release_scratch(PyObject*, PyObject*) { return PyLong_FromSize_t(snipkern::release_scratch()); }

PyMethodDef methods[] = {
    {"isa", isa, METH_NOARGS, "Name of the instruction-set tier in use."},
    {"best_isa", best_isa, METH_NOARGS, "Name of the best tier that this processor runs."},
    {"set_isa", set_isa, METH_O, "Switches the tier; False, changing nothing, where it cannot run here."},
    {"release_scratch", release_scratch, METH_NOARGS,
     "Frees the calling thread's reused scratch memory; returns how many bytes that were."},
    {"probe_multiply_adds", snipkern::python_probe_multiply_adds, METH_VARARGS,
     "probe_multiply_adds(passes) -> (operations, seconds) of multiply-adds on registers, on all threads."},
    {"probe_reads", snipkern::python_probe_reads, METH_VARARGS,
     "probe_reads(bytes, passes) -> (bytes read, seconds) from a buffer of that size for each thread."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&definition); }
