// The Python module snipkern._C_cuda: importing it registers the ops' kernels for CUDA tensors; its functions tell what
// it was compiled for, and what precision it may use. None of them makes a CUDA context, which would forbid fork().
#include <Python.h>
#include <cuda_runtime_api.h>

#include "bindings/cuda/tf32.h"

namespace {

PyObject* architectures(PyObject*, PyObject*) { return PyUnicode_FromString(SNIPKERN_CUDA_ARCHITECTURES); }

PyObject* version_text(int version) { return PyUnicode_FromFormat("%d.%d", version / 1000, version % 1000 / 10); }

PyObject* compiled_version(PyObject*, PyObject*) { return version_text(CUDART_VERSION); }

PyObject* runtime_version(PyObject*, PyObject*) {
  int version = 0;
  const cudaError_t error = cudaRuntimeGetVersion(&version);
  if (error != cudaSuccess) {
    PyErr_SetString(PyExc_RuntimeError, cudaGetErrorString(error));
    return nullptr;
  }
  return version_text(version);
}

PyObject* allow_tf32(PyObject*, PyObject* allow) {
  const int wanted = PyObject_IsTrue(allow);
  if (wanted < 0) return nullptr;
  return PyBool_FromLong(snipkern_allow_tf32(wanted));
}

PyMethodDef methods[] = {
    {"allow_tf32", allow_tf32, METH_O, "Whether products of float32 may round to TF32; returns what held before."},
    {"architectures", architectures, METH_NOARGS, "What the kernels were compiled for, such as \"8.0;9.0a;10.0+PTX\"."},
    {"compiled_version", compiled_version, METH_NOARGS, "Version of the CUDA toolkit that compiled the kernels."},
    {"runtime_version", runtime_version, METH_NOARGS, "Version of the CUDA runtime that the kernels run with."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C_cuda() { return PyModule_Create(&definition); }
